"""What `reszoo web` writes, fetches and refuses; the pages themselves: test_site.py."""

import base64
import hashlib
import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from scripts import EXPORT
from typer.testing import CliRunner

import reszoo
from reszoo.cli.options import app
from reszoo_export import site as sites
from reszoo_export.manifest import read_manifest
from reszoo_export.site import write_site


def test_from_a_cdn_every_runtime_file_has_a_hash(tmp_path: Path) -> None:
    site = write_site(EXPORT, tmp_path / "site", vendor=False)
    text = (site / "index.html").read_text()
    found = re.search(r'<script type="importmap">(.*?)</script>', text)
    assert found is not None
    table = json.loads(found[1])
    assert set(table["imports"].values()) == set(table["integrity"])
    assets = json.loads((site / "site.json").read_text())["assets"]
    assert len(assets) == 10
    for asset in assets.values():
        assert asset["url"].startswith("https://cdn.jsdelivr.net/npm/")
        assert re.fullmatch(r"sha256-[\w+/]{43}=", asset["integrity"])
    assert not (site / "runtimes").exists()
    policy = re.search(r'Policy" content="(.*?)"', text)
    assert policy is not None
    assert "connect-src 'self' https://cdn.jsdelivr.net;" in policy[1]
    digest = hashlib.sha256(found[1].encode()).digest()
    assert f"'sha256-{base64.b64encode(digest).decode()}'" in policy[1]


def test_sites_are_refused_without_files_for_browsers_and_over_other_content(
    tmp_path: Path,
) -> None:
    manifest = read_manifest(EXPORT)
    export = tmp_path / "export"
    export.mkdir()
    saved = [each for each in manifest.files if each.format == "saved_model"]
    replace(manifest, files=tuple(saved)).write(export)
    with pytest.raises(reszoo.UsageError, match=r"Received: saved_model; export"):
        write_site(export, tmp_path / "site", vendor=False)
    site = write_site(EXPORT, tmp_path / "site", vendor=False)
    with pytest.raises(reszoo.UsageError, match="already holds a site"):
        write_site(EXPORT, site, vendor=False)
    write_site(EXPORT, site, vendor=False, overwrite=True)
    (site / "mine").touch()
    with pytest.raises(reszoo.UsageError, match=r"holds other files too: mine;"):
        write_site(EXPORT, site, vendor=False, overwrite=True)


def test_vendoring_needs_npm_and_takes_no_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESZOO_HOME", str(tmp_path / "home"))
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(reszoo.UsageError, match=r"--vendor copies @litertjs/core@2"):
        write_site(EXPORT, tmp_path / "site", vendor=True)
    # Without npm, and unless asked, from the CDN.
    assert not (write_site(EXPORT, tmp_path / "cdn") / "runtimes").exists()
    package = tmp_path / "package"
    package.mkdir()
    litert = sites._PACKAGES["tflite"][0]
    for name in litert.files:
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text("other")
    npm = tools / "npm"
    npm.write_text(f"#!/bin/sh\n/bin/tar czf $4/a.tgz -C {tmp_path} package\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/bin:/usr/bin")
    with pytest.raises(reszoo.ExportError, match="must have the SHA-256"):
        sites._fetch(litert)
    assert not litert.cached.exists()


def _npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program called npm before the others."""
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
    monkeypatch.setenv("RESZOO_HOME", str(folder / "home"))


def test_what_npm_says_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As the real one, which says nothing at all if it is told to be silent.
    silent = 'case "$*" in *silent*) exit 1;; esac'
    says = "for line in code\\ ENOTFOUND a b c STACK; do echo npm error $line >&2; done"
    _npm(tmp_path, f"{silent}; {says}; exit 1", monkeypatch)
    message = r"cannot download @litertjs/core.*code ENOTFOUND .*--no-vendor"
    with pytest.raises(reszoo.ReszooError, match=message) as caught:
        write_site(EXPORT, tmp_path / "site")
    assert "STACK" not in str(caught.value)
    assert not (tmp_path / "site").exists()


def test_a_damaged_cache_is_fetched_again_and_a_package_without_a_file_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"export {};"
    sha256 = base64.b64encode(hashlib.sha256(content).digest()).decode()
    package = sites._Package("demo", "1.0.0", {"dist/a.js": sha256}, {})
    packs = f"/bin/tar czf $4/a.tgz -C {tmp_path} package"
    _npm(tmp_path, packs, monkeypatch)
    inside = tmp_path / "package/dist"
    inside.mkdir(parents=True)
    with pytest.raises(reszoo.ExportError, match=r"dist/a.js of npm's demo@1.0.0"):
        sites._fetch(package)
    (inside / "a.js").write_bytes(content)
    (inside / "b.js").touch()
    sites._fetch(package)
    cached = package.cached / "dist/a.js"
    assert [*package.cached.rglob("*.js")] == [cached]
    for damage in (lambda: cached.write_bytes(b"other"), cached.unlink):
        damage()
        sites._fetch(package)
        assert cached.read_bytes() == content


def test_files_that_changed_or_are_gone_make_no_site(tmp_path: Path) -> None:
    export = tmp_path / "export"
    shutil.copytree(EXPORT, export)
    with (export / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(reszoo.ExportError, match=r"onnx: the file has changed"):
        write_site(export, tmp_path / "site", vendor=False)
    (export / "model.onnx").unlink()
    with pytest.raises(reszoo.ExportError, match=r"There is no file .*model\.onnx"):
        write_site(export, tmp_path / "site", vendor=False)
    assert not (tmp_path / "site").exists()


def test_the_command_shown_after_writing_a_site_can_be_copied(tmp_path: Path) -> None:
    output = tmp_path / "my site"
    done = CliRunner().invoke(
        app, ["web", str(EXPORT), "--output", str(output), "--no-vendor"]
    )
    assert done.exit_code == 0, done.output
    (line,) = [line for line in done.stdout.splitlines() if "http.server" in line]
    assert shlex.split(line)[-2:] == ["--directory", str(output)]
