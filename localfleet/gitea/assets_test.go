package gitea

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// module writes what a module's unpacked source has, read-only as there.
func module(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for path, content := range map[string]string{
		"options/locale/locale_en-US.json": "{}", "templates/home.tmpl": "home", "public/assets/img/logo.svg": "<svg/>",
		"web_src/js/index.ts": "", "assets/go-licenses.json": "[]", "tools/x.ts": "", "pnpm-lock.yaml": "", "tsconfig.json": "{}",
		"types.d.ts": "", "vite.config.ts": "", "tailwind.config.ts": "",
		"package.json": `{"type": "module", "packageManager": "pnpm@10.33.0", "dependencies": {"vue": "3.5.0"}}`,
	} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o444); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestWriteAssetsWithoutPageCanBeRepeated(t *testing.T) {
	source, dest := module(t), filepath.Join(t.TempDir(), "share")
	for range 2 {
		if err := WriteAssets(t.Context(), Assets{Source: source, Dest: dest, WithoutPage: true}); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"options/locale/locale_en-US.json", "templates/home.tmpl", "public/assets/img/logo.svg"} {
		if info, err := os.Stat(filepath.Join(dest, path)); err != nil || info.Mode().Perm() != 0o644 {
			t.Errorf("%s: %v, %v; want a file that everybody can read", path, info, err)
		}
	}
}

func TestPageSourceDemandsNoExactPnpm(t *testing.T) {
	source, dest := module(t), t.TempDir()
	if err := copyPageSource(source, dest); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dest, "package.json"))
	if err != nil {
		t.Fatal(err)
	}
	var manifest map[string]any
	if err := json.Unmarshal(data, &manifest); err != nil {
		t.Fatal(err)
	}
	if manifest["packageManager"] != nil || manifest["type"] != "module" || manifest["dependencies"] == nil {
		t.Errorf("package.json is %s", data)
	}
}

// Building the page takes npm's registry and some minutes of processor time, so
// it is asked for: OMNIVISION_GITEA_SOURCE names the module's source, and
// OMNIVISION_GITEA_PAGE where the result is kept.
func TestPageIsBuilt(t *testing.T) {
	source, dest := os.Getenv("OMNIVISION_GITEA_SOURCE"), os.Getenv("OMNIVISION_GITEA_PAGE")
	if source == "" || dest == "" {
		t.Skip("set OMNIVISION_GITEA_SOURCE and OMNIVISION_GITEA_PAGE to build Gitea's page")
	}
	if err := WriteAssets(t.Context(), Assets{Source: source, Dest: dest, Report: func(what string) { t.Log(what) }}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dest, "public", "assets", ".vite", "manifest.json")); err != nil {
		t.Error(err)
	}
}
