package ui_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/omnivision/omnivision/worker/api"
)

var update = flag.Bool("update", false, "write docs/images/ui.png")

// browser is a headless Chromium with one tab.
type browser struct {
	*testing.T
	ctx context.Context

	mu         sync.Mutex
	complaints []string // of the console and of the Content-Security-Policy
}

// findChromium returns the path of a browser, or "".
func findChromium() string {
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

// shared is the one browser process of this package's tests: it takes longer to
// start than most of them to run. stop ends it.
var shared struct {
	once sync.Once
	ctx  context.Context
	err  error
	stop func()
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.stop != nil {
		shared.stop()
	}
	os.Exit(code)
}

func startShared(path string) {
	profile, err := os.MkdirTemp("", "omnivision-chromium-")
	if err != nil {
		shared.err = err
		return
	}
	allocator, stop := chromedp.NewExecAllocator(context.Background(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("hide-scrollbars", true), chromedp.UserDataDir(profile), chromedp.WSURLReadTimeout(2*time.Minute))...)
	ctx, closeBrowser := chromedp.NewContext(allocator)
	shared.ctx = ctx
	shared.stop = func() {
		_ = chromedp.Cancel(ctx) // waits for the process to end
		closeBrowser()
		stop()
		_ = os.RemoveAll(profile)
	}
	shared.err = chromedp.Do(ctx)
}

// chromium opens a tab, in a profile of its own, that closes with the test.
// Where no browser is installed the test is skipped on a laptop, and fails in
// CI.
func chromium(t *testing.T) *browser {
	t.Helper()
	path := findChromium()
	if path == "" {
		if os.Getenv("CI") != "" {
			t.Fatal("no chromium in PATH, and CI must not skip the browser tests; apt-get install chromium")
		}
		t.Skip("no chromium in PATH; apt-get install chromium to run the browser tests")
	}
	shared.once.Do(func() { startShared(path) })
	if shared.err != nil {
		t.Fatalf("starting %s: %v", path, shared.err)
	}
	b := &browser{T: t}
	tab, closeTab := chromedp.NewContext(shared.ctx, chromedp.WithListener(b.listen), chromedp.WithNewBrowserContext())
	t.Cleanup(closeTab)
	if err := chromedp.Do(tab); err != nil { // the tab lives as long as the context of its first call
		t.Fatalf("opening a tab: %v", err)
	}
	ctx, cancel := context.WithTimeout(tab, 2*patience)
	t.Cleanup(cancel)
	b.ctx = ctx
	return b
}

func (b *browser) listen(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *runtime.EventExceptionThrown:
		b.complaints = append(b.complaints, e.ExceptionDetails.Text)
	case *log.EventEntryAdded:
		b.complaints = append(b.complaints, fmt.Sprintf("%s: %s", e.Entry.Level, e.Entry.Text))
	}
}

func (b *browser) complained() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.complaints...)
}

func (b *browser) do(steps ...chromedp.Action[chromedp.Void]) {
	b.Helper()
	if err := chromedp.Do(b.ctx, steps...); err != nil {
		b.Fatal(err)
	}
}

// evaluate returns the value of a JavaScript expression.
func evaluate[T any](b *browser, expression string) T {
	b.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expression, func(p *runtime.EvaluateParams) { yes := true; p.AwaitPromise = &yes }))
	if err != nil {
		b.Fatalf("%s: %v", expression, err)
	}
	return v
}

// eventually waits for a JavaScript expression to be true.
func (b *browser) eventually(expression string) {
	b.Helper()
	_, err := chromedp.Run(b.ctx, chromedp.Poll[chromedp.Void](expression,
		chromedp.WithPollingTimeout(patience), chromedp.WithPollingInterval(20*time.Millisecond)))
	if err != nil {
		status, _ := chromedp.Run(b.ctx, chromedp.Evaluate[string](`document.getElementById("status").textContent`))
		b.Fatalf("waiting for %s (the page says %q, the console %q): %v", expression, status, b.complained(), err)
	}
}

// choose sets a field as a user would.
func choose(selector, value string) chromedp.Action[chromedp.Void] {
	return chromedp.SetValue(chromedp.CSS(selector), value)
}

func typing(selector, text string) chromedp.Action[chromedp.Void] {
	return chromedp.SendKeys(chromedp.CSS(selector), text)
}

func click(selector string) chromedp.Action[chromedp.Void] {
	return chromedp.Click(chromedp.CSS(selector))
}

func TestAUserGetsAnAnimationAndSeesWhoMadeIt(t *testing.T) {
	b := chromium(t)
	ui := newUI(t, newWorker(t, pace(15*time.Millisecond)))
	frames := "12"
	if *update {
		frames = "48"
	}
	b.do(chromedp.EmulateViewport(1280, 900), prefers("dark"), chromedp.Navigate(ui.URL),
		typing("#prompt", "aurora over a quiet sea"), choose("#seed", "4"), choose("#frames", frames))
	evaluate[bool](b, `window.counts = []; new MutationObserver(() => counts.push(document.getElementById("count").textContent)).observe(document.getElementById("count"), {childList: true}); true`)
	b.do(click("#generate"))
	b.eventually(`document.getElementById("progress").value >= 3 && document.getElementById("stage").dataset.state === "busy"`)
	b.eventually(`document.getElementById("stage").dataset.state === "done"`)

	if got := strings.Join(evaluate[[]string](b, `counts`), ","); !strings.Contains(got, "1 / "+frames+",2 / "+frames) || !strings.Contains(got, frames+" / "+frames) {
		t.Errorf("progress went %q, want one step a frame up to %s", got, frames)
	}
	if !evaluate[bool](b, `document.getElementById("result").complete && document.getElementById("result").naturalWidth === 256 && !document.getElementById("result").hidden`) {
		t.Error("the browser does not play the finished animation")
	}
	if link := evaluate[string](b, `document.getElementById("download").download + " " + document.getElementById("download").href`); !strings.HasPrefix(link, "omnivision-4.png blob:") {
		t.Errorf("the download is %q, want the animation as omnivision-4.png", link)
	}
	for id, want := range map[string]string{
		"worker-region": "us-west-2", "worker-cluster": "cluster-aws", "worker-version": "1.4.0", "worker-commit": workerIdentity.Commit, "worker-digest": workerIdentity.Digest,
		"ui-region": "us-west-2", "ui-cluster": "cluster-aws", "ui-version": "1.3.2", "ui-commit": uiIdentity.Commit, "ui-digest": uiIdentity.Digest,
		"take-seed": "4", "take-model": "cppn-1",
	} {
		if got := evaluate[string](b, `document.getElementById("`+id+`").innerText`); got != want {
			t.Errorf("#%s shows %q, want %q", id, got, want)
		}
	}
	if *update {
		b.screenshot(filepath.Join("..", "docs", "images", "ui.png"))
		// For the eye of whoever changes the page; not kept.
		b.do(prefers("light"))
		b.screenshot(filepath.Join(os.TempDir(), "omnivision-ui-light.png"))
		b.do(prefers("dark"), chromedp.EmulateViewport(390, 1560, chromedp.EmulateMobile))
		b.screenshot(filepath.Join(os.TempDir(), "omnivision-ui-phone.png"))
	}
	b.do(click("#pause"))
	if !evaluate[bool](b, `document.getElementById("result").hidden`) {
		t.Error("the animation cannot be paused")
	}
	b.do(click("#pause"))
	b.do(chromedp.EmulateViewport(360, 740, chromedp.EmulateMobile))
	if evaluate[bool](b, `document.documentElement.scrollWidth > document.documentElement.clientWidth`) {
		t.Error("on a phone of 360 px the page scrolls sideways")
	}
	if c := b.complained(); len(c) > 0 {
		t.Errorf("the browser complains: %q", c)
	}
}

func TestABusyGPUIsAskedAgainAfterACountdown(t *testing.T) {
	b := chromium(t)
	gate := make(chan struct{})
	ui := newUI(t, newWorker(t, gated(gate)))
	first := ask(t, t.Context(), ui.URL, `{"prompt":"holds the only GPU","frames":2,"size":32}`)
	defer first.Body.Close()

	b.do(chromedp.Navigate(ui.URL), typing("#prompt", "waits for its turn"), choose("#frames", "3"), click("#generate"))
	b.eventually(`/busy.*Trying again in \d+ s/.test(document.getElementById("status").textContent)`)
	close(gate)
	b.eventually(`document.getElementById("stage").dataset.state === "done"`)
}

func TestCancellingStopsAtWhatIsThere(t *testing.T) {
	b := chromium(t)
	gate := make(chan struct{})
	defer close(gate)
	ui := newUI(t, newWorker(t, gated(gate)))
	b.do(chromedp.Navigate(ui.URL), typing("#prompt", "never ends"), click("#generate"))
	b.eventually(`document.getElementById("count").textContent === "1 / 48"`)
	b.do(click("#cancel"))
	b.eventually(`document.getElementById("status").textContent === "Cancelled" && document.getElementById("download").hidden && document.getElementById("cancel").hidden`)
}

func TestAStreamThatBreaksOffIsSaidToHaveBroken(t *testing.T) {
	b := chromium(t)
	ui := newUI(t, newWorker(t, func(_ context.Context, frame int) error {
		if frame == 2 {
			return errors.New("CUDA error: an illegal memory access was encountered")
		}
		return nil
	}))
	b.do(chromedp.Navigate(ui.URL), typing("#prompt", "breaks"), click("#generate"))
	b.eventually(`/broke off after [012] of (48|all) frames/.test(document.getElementById("status").textContent)`)
}

func TestTheFormNamesTheFieldThatTheWorkerRefuses(t *testing.T) {
	b := chromium(t)
	ui := newUI(t, newWorker(t, nil))
	b.do(chromedp.Navigate(ui.URL), typing("#prompt", "too much of it"))
	evaluate[bool](b, `document.getElementById("frames").removeAttribute("max"); true`) // as if the page were of another version
	b.do(choose("#frames", "999"), click("#generate"))
	b.eventually(`document.getElementById("frames-error").textContent === "Frames must be an integer from 1 to 240" && document.getElementById("frames").getAttribute("aria-invalid") === "true"`)
}

func TestWithoutJavaScriptTheFormReturnsTheAnimation(t *testing.T) {
	b := chromium(t)
	ui := newUI(t, newWorker(t, nil))
	b.do(func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
		_, err := cdp.Call(ctx, target, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
		return chromedp.Void{}, err
	}, chromedp.Navigate(ui.URL), typing("#prompt", "plain old form"), choose("#frames", "4"))
	response, err := chromedp.RunResponse(b.ctx, click("#generate"))
	if err != nil {
		t.Fatal(err)
	}
	if response.Status != 200 || response.MimeType != api.ContentType {
		t.Errorf("the form led to %d %s, want 200 %s", response.Status, response.MimeType, api.ContentType)
	}
	b.do(chromedp.WaitVisible(chromedp.CSS("img")))
	if !evaluate[bool](b, `document.images.length === 1 && document.images[0].naturalWidth === 256`) {
		t.Error("the browser does not show the animation")
	}
}

func prefers(scheme string) chromedp.Action[chromedp.Void] {
	return func(ctx context.Context, target *chromedp.Target) (chromedp.Void, error) {
		_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
		})
		return chromedp.Void{}, err
	}
}

func (b *browser) screenshot(path string) {
	b.Helper()
	b.do(chromedp.Sleep(700 * time.Millisecond)) // the glow fades in
	picture, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
	if err := errors.Join(err, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, picture, 0o644)); err != nil {
		b.Fatal(err)
	}
	b.Logf("wrote %s", path)
}
