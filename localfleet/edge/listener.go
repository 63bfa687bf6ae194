package edge

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/omnivision/omnivision/localfleet/netns"
)

// drain is how long requests in flight may take when the edge stops: it has promised to be gone in 2 s.
const drain = time.Second

// frontListener is one of the front's sockets. Its namespace may not be there yet: it tries until it is.
type frontListener struct {
	netns, address string
	server         *http.Server
	log            *slog.Logger
	cancel         context.CancelFunc
	done           chan struct{}

	mu        sync.Mutex
	listening bool
	err       error
}

// startFrontListener serves handler at address; with TLS when config is given.
func startFrontListener(ns, address string, handler http.Handler, config *tls.Config, log *slog.Logger) *frontListener {
	ctx, cancel := context.WithCancel(context.Background())
	l := &frontListener{
		netns: ns, address: address, log: log, cancel: cancel, done: make(chan struct{}), err: errors.New("not tried yet"),
		server: &http.Server{
			Handler:           handler,
			TLSConfig:         config,
			ReadHeaderTimeout: 10 * time.Second,
			IdleTimeout:       2 * time.Minute,
			MaxHeaderBytes:    64 << 10,
			ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
			// No limit for bodies: a layer or a clone takes as long as it takes.
		},
	}
	go l.run(ctx)
	return l
}

func (l *frontListener) run(ctx context.Context) {
	defer close(l.done)
	backoff := 100 * time.Millisecond
	for ctx.Err() == nil {
		socket, err := netns.Listen(ctx, l.netns, "tcp", l.address)
		if err == nil {
			l.set(true, nil)
			backoff = 100 * time.Millisecond
			err = l.serve(socket)
			if errors.Is(err, http.ErrServerClosed) {
				l.set(false, nil)
				return
			}
		}
		l.set(false, err)
		select {
		case <-ctx.Done():
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, 5*time.Second)
	}
}

func (l *frontListener) serve(socket net.Listener) error {
	if l.server.TLSConfig != nil {
		return l.server.ServeTLS(socket, "", "")
	}
	return l.server.Serve(socket)
}

func (l *frontListener) set(listening bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil && (l.err == nil || l.err.Error() != err.Error()) {
		l.log.Warn("the front does not listen", "address", l.address, "error", err.Error())
	}
	l.listening, l.err = listening, err
}

func (l *frontListener) status() ListenerStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := ListenerStatus{Listen: l.address, NetNS: l.netns, Listening: l.listening}
	if l.err != nil {
		s.Error = l.err.Error()
	}
	return s
}

func (l *frontListener) close() {
	l.cancel()
	ctx, cancel := context.WithTimeout(context.Background(), drain)
	defer cancel()
	if err := l.server.Shutdown(ctx); err != nil {
		_ = l.server.Close() // what is left is cut
	}
	<-l.done
}
