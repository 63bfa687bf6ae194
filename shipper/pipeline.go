package shipper

import (
	"context"
	"time"
)

// chunkSize is the size at which a chunk is made before its time, which bounds memory.
const chunkSize = 1 << 20

// maxPasses is how often files are read before something else has its turn.
const maxPasses = 64

// pipeline ships with one configuration.
type pipeline struct {
	config   *Config
	options  Options
	metrics  *metrics
	buffer   *buffer
	tailer   *tailer
	batch    *batch
	deliver  *deliverer
	flushed  time.Time
	searched time.Time
}

func newPipeline(config *Config, options Options, m *metrics) (*pipeline, error) {
	b, positions, err := openBuffer(config, m)
	if err != nil {
		return nil, err
	}
	return &pipeline{
		config: config, options: options, metrics: m, buffer: b,
		tailer: newTailer(config, positions, m), batch: newBatch(config), deliver: newDeliverer(config, options, b, m),
	}, nil
}

// run reads until it is told to stop, for good (true) or to make way for the next configuration (false).
func (p *pipeline) run(stop <-chan bool) error {
	defer p.tailer.closeAll()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	hard, abort := context.WithCancel(context.Background())
	defer abort()
	delivered := make(chan struct{})
	go func() {
		defer close(delivered)
		p.deliver.run(ctx, hard)
	}()
	tick := time.NewTicker(p.options.Poll)
	defer tick.Stop()
	for {
		p.turn(time.Now())
		select {
		case forGood := <-stop:
			if forGood {
				p.drain(delivered)
				abort()
			}
			cancel()
			<-delivered
			return nil
		case <-tick.C:
		}
	}
}

// turn reads all that there is and makes chunks of it. What fails is tried again at the next turn.
func (p *pipeline) turn(now time.Time) {
	if now.Sub(p.searched) >= p.config.Tail.Refresh || p.searched.IsZero() {
		p.searched = now
		if err := p.tailer.refresh(now); err != nil {
			p.metrics.inputErrors.Inc()
			p.options.Log.Error("look for log files", "error", err)
		}
	}
	// A container that writes faster than is read must not keep the rest waiting.
	for some, pass := true, 0; some && pass < maxPasses; pass++ {
		var err error
		if some, err = p.tailer.read(now, p.batch.add); err != nil {
			p.metrics.inputErrors.Inc()
			p.options.Log.Error("read log files", "error", err)
			break
		}
		if p.batch.size >= chunkSize && !p.flush(now) {
			return
		}
	}
	if now.Sub(p.flushed) >= p.config.Service.Flush {
		p.flush(now)
	}
}

// flush makes a chunk of the batch; false if the disk does not take it.
func (p *pipeline) flush(now time.Time) bool {
	p.flushed = now
	if p.batch.records == 0 {
		return true
	}
	if err := p.buffer.add(p.batch.body(), p.batch.records, p.tailer.state()); err != nil {
		p.metrics.inputErrors.Inc()
		p.options.Log.Error("the buffer takes nothing; reading waits", "error", err)
		return false
	}
	p.batch = newBatch(p.config)
	return true
}

// drain reads what still comes, and waits for the delivery as long as Grace allows.
func (p *pipeline) drain(delivered <-chan struct{}) {
	deadline := time.NewTimer(p.config.Service.Grace)
	defer deadline.Stop()
	// The runtime may still be writing what the last container said.
	settled := time.NewTimer(min(p.options.Settle, p.config.Service.Grace/2))
	defer settled.Stop()
	tick := time.NewTicker(p.options.Poll)
	defer tick.Stop()
	for late := true; late; {
		select {
		case <-settled.C:
			late = false
		case <-tick.C:
		}
		p.searched = time.Time{}
		p.turn(time.Now())
	}
	p.tailer.finish(time.Now(), p.batch.add)
	p.flush(time.Now())
	p.deliver.hurry()
	for !p.buffer.empty() {
		select {
		case <-deadline.C:
			p.options.Log.Warn("not all was delivered in time; it stays in the buffer")
			return
		case <-delivered:
			return
		case <-tick.C:
		}
	}
}
