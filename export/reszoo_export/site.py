"""Write a static site that classifies images in the browser with an export's files."""

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from base64 import b64encode
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from reszoo import files
from reszoo.cards import public_origin
from reszoo.console import say
from reszoo.errors import ExportError, ReszooError, UsageError
from reszoo.files import StrPath
from reszoo.report.page import environment, escape_html
from reszoo_export.formats import CAM, FORMATS
from reszoo_export.manifest import FileRecord, Manifest, read_manifest
from reszoo_export.metadata import licence, summary
from reszoo_export.snippets import classifying_output, preprocess_js

SITE_FILE = "site.json"
_TEMPLATES = resources.files("reszoo_export") / "web"
_STATIC = ("app.js", "run.js", "style.css")
_CDN = "https://cdn.jsdelivr.net/npm"


@dataclass(frozen=True)
class _Package:
    """A runtime's npm package: files of these SHA-256s, in base64, and no others."""

    name: str
    version: str
    files: dict[str, str]
    imports: dict[str, str]  # name in JavaScript -> file of the module

    @property
    def cached(self) -> Path:
        return files.cache_folder() / "npm" / self.name / self.version

    def wrong(self, folder: Path) -> list[str]:
        """Return which files a folder lacks, or has with other contents."""
        return [
            name for name, sha256 in self.files.items()
            if not (path := folder / name).is_file()
            or _sha256(path.read_bytes()) != sha256
        ]  # fmt: skip


# Runtime -> its packages, of which the first names it.
_PACKAGES = {
    name: tuple(_Package(**each) for each in packages)
    for name, packages in json.loads((_TEMPLATES / "packages.json").read_text()).items()
}
# What the browsers' runtimes take; LiteRT.js has no int8 tensors.
_DTYPES = {"float32", "uint8"}


def write_site(
    folder: StrPath,
    output: StrPath,
    *,
    vendor: bool | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a static site that classifies photos and the camera's images.

    Any static host serves it; its page is `index.html`, and images stay on the device.
    `.onnx` files are run by ONNX Runtime Web (WebGPU where the browser has it, else
    WebAssembly), `.tflite` files by LiteRT.js (WebAssembly). Browsers check every
    runtime and model file against the hashes in the site.

    Args:
        folder: The export, as `export` wrote it.
        output: The folder to create.
        vendor: Whether the runtimes are copied into the site, from npm's packages,
            which are kept in the cache; otherwise browsers load them from jsDelivr.
            None is True where npm, or what it fetched before, is available.
        overwrite: Whether to replace an existing site.

    Returns:
        The site's folder.

    Raises:
        UsageError: The export has no file that browsers can run, the output exists,
            or there is no npm to vendor with.
        ExportError: The folder is not an export, a file of it is missing or has
            changed, or npm's package has other content.
    """
    manifest = read_manifest(folder)
    usable = replace(manifest, files=tuple(filter(_runs, manifest.files)))
    if not usable.files:
        raise UsageError(
            "A site needs .onnx or .tflite files with float32 or uint8 input that give "
            "probabilities or logits. Received: "
            f"{', '.join(each.file for each in manifest.files)}; export with --formats "
            "web,tflite."
        )
    replaceable = partial(
        files.free_folder, output, kind="a site", named=_named, overwrite=overwrite,
        inputs=[manifest.folder],
    )  # fmt: skip
    target = replaceable()
    runtimes = dict.fromkeys(FORMATS[each.format].runtime.name for each in usable.files)
    packages = [package for name in runtimes for package in _PACKAGES[name]]
    if vendor is None:
        cached = not any(each.wrong(each.cached) for each in packages)
        vendor = cached or shutil.which("npm") is not None
        if not vendor:
            say("npm is not installed: browsers load the runtimes from jsDelivr.")
    if vendor:
        for package in packages:
            _fetch(package)
    with files.atomic_folder(target, replaceable) as site:
        _write(site, usable, packages, vendor)
    return target


def _runs(record: FileRecord) -> bool:
    output = classifying_output(record)
    dtypes = {record.inputs[0]["dtype"], output["dtype"]}
    known = FORMATS[record.format].runtime.name in _PACKAGES
    return known and dtypes <= _DTYPES and output["name"] != "features"


def _named(folder: Path) -> list[str] | None:
    """Return the files of an earlier site; None if the folder is none."""
    try:
        contents = files.read_json(folder / SITE_FILE)["contents"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return [each for each in contents if isinstance(each, str)]


def _fetch(package: _Package) -> None:
    """Have npm download a package into the cache, unless it is there."""
    if not package.wrong(package.cached):
        return
    spec = f"{package.name}@{package.version}"
    if not (npm := shutil.which("npm")):
        raise UsageError(
            f"--vendor copies {spec} with npm, which is not installed. Install "
            "Node.js, or pass --no-vendor to load the runtimes from a CDN."
        )
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", "--loglevel=error", "--pack-destination", folder]
        command += ["--fetch-retries=1", spec]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode:
            lines = (done.stderr or done.stdout).splitlines()[:4]
            reason = public_origin(" ".join(lines))
            advice = "Check the network, or pass --no-vendor to load them from a CDN."
            raise ReszooError(f"npm cannot download {spec}: {reason}. {advice}")
        (archive,) = Path(folder).glob("*.tgz")
        with files.atomic_folder(package.cached) as cache:
            with tarfile.open(archive) as packed:
                for member in packed:
                    name = member.name.removeprefix("package/")
                    if name in package.files and (file := packed.extractfile(member)):
                        (cache / name).parent.mkdir(exist_ok=True)
                        (cache / name).write_bytes(file.read())
            for name in package.wrong(cache):
                raise ExportError(
                    f"{name} of npm's {spec} must have the SHA-256 "
                    f"{package.files[name]} (in base64). Received: another file, or "
                    "none; nothing was kept."
                )


def _write(site: Path, manifest: Manifest, used: list[_Package], vendor: bool) -> None:
    for name in _STATIC:
        files.write_text(site / name, (_TEMPLATES / name).read_text(encoding="utf-8"))
    files.write_text(site / "preprocess.js", preprocess_js(manifest.files[0], manifest))
    for record in manifest.files:
        manifest.copy_file(record, site)
    assets: dict[str, dict[str, str]] = {}
    for package in used:
        start = f"{package.name}@{package.version}"
        where = f"./runtimes/{start}" if vendor else f"{_CDN}/{start}"
        for file, sha256 in package.files.items():
            # Not every host knows that .mjs files are JavaScript.
            url = f"{where}/{file.replace('.mjs', '.js') if vendor else file}"
            if vendor:
                (site / url).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(package.cached / file, site / url)
            asset = {"url": url, "integrity": f"sha256-{sha256}"}
            names = [name for name, each in package.imports.items() if each == file]
            assets[names[0] if names else Path(file).name] = asset
    modules = {name: assets[name] for each in used for name in each.imports}
    files.write_text(site / "index.html", _page(manifest, modules, vendor))
    confidence = manifest.card.confidence
    content = {
        "labels": manifest.card.labels,
        "unknownBelow": confidence and confidence.min_probability,
        "files": [_described(record) for record in manifest.files],
        "assets": assets,
        "contents": sorted({*files.folder_entries(site), SITE_FILE}),
    }
    files.write_json(site / SITE_FILE, content)


def _described(record: FileRecord) -> dict[str, Any]:
    row = FORMATS[record.format]
    package = _PACKAGES[row.runtime.name][0]
    output = classifying_output(record)
    maps = [each for each in record.outputs if each["name"] == CAM]
    return {
        "file": record.file,
        "name": f"{record.file} ({row.precision}, {record.bytes / 1e6:.1f} MB)",
        "runtime": row.runtime.name,
        "library": f"{package.name} {package.version}",
        "integrity": "sha256-" + b64encode(bytes.fromhex(record.sha256)).decode(),
        "input": record.inputs[0],
        "output": output,
        "outputs": [each["name"] for each in (output, *maps)],
        "maps": maps[0]["shape"][1:] if maps else None,
    }


def _page(manifest: Manifest, modules: dict[str, dict[str, str]], vendor: bool) -> str:
    imports = {name: each["url"] for name, each in modules.items()}
    integrity = {each["url"]: each["integrity"] for each in modules.values()}
    # "<" would end the script; the hash in the policy is of these very characters.
    table = json.dumps({"imports": imports, "integrity": integrity})
    table = table.replace("<", "\\u003c")
    text = (_TEMPLATES / "index.html.j2").read_text(encoding="utf-8")
    return environment(escape_html).from_string(text).render(
        title=(name := manifest.card.architecture.name),
        summary=summary(manifest.card).removeprefix(f"{name}, ").rpartition(". ")[0],
        licence=licence(manifest.card), imports=table, digest=_sha256(table.encode()),
        cdn="" if vendor else " " + _CDN.rpartition("/")[0],
    )  # fmt: skip


def _sha256(content: bytes) -> str:
    return b64encode(hashlib.sha256(content).digest()).decode()
