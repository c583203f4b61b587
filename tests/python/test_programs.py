"""The programs of the README and of examples/, compiled and run as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from repository import ROOT

BUILD = Path(os.environ.get("KF_BUILD_DIR", ROOT / "build"))


def blocks(language: str, name: str = "README.md") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / name).read_text(), re.DOTALL | re.MULTILINE)


def run(*command: object, cwd: Path) -> str:
    result = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout}{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> Path:
    """Every C++ program, built against the installed library with the README's own CMake lines."""
    if not (BUILD / "libkf.a").is_file() and not (BUILD / "libkf.so").is_file():
        pytest.skip(f"{BUILD}: kf has not been built there")
    folder = tmp_path_factory.mktemp("programs")
    [linking] = blocks("cmake")
    sources = {f"readme{i}": text for i, text in enumerate(blocks("cpp"))}
    sources |= {path.stem: path.read_text() for path in ROOT.glob("examples/*.cpp")}
    lines = ["cmake_minimum_required(VERSION 3.25)", "project(programs LANGUAGES CXX)"]
    for name, text in sources.items():
        (folder / f"{name}.cpp").write_text(text)
        lines += [f"add_executable({name} {name}.cpp)", linking.replace("(program ", f"({name} ")]
    (folder / "CMakeLists.txt").write_text("\n".join(lines))
    run("cmake", "--install", BUILD, "--prefix", folder / "prefix", cwd=folder)
    run("cmake", "-S", ".", "-B", "out", f"-DCMAKE_PREFIX_PATH={folder / 'prefix'}", cwd=folder)
    run("cmake", "--build", "out", cwd=folder)
    return folder / "out"


def test_the_readme_has_programs():
    assert len(blocks("cpp")) == len(blocks("cmake")) == 1 and len(blocks("python")) == 3
    assert "find_package(kf REQUIRED)" in blocks("cmake")[0] and "(program " in blocks("cmake")[0]


def test_the_readmes_cpp_program(programs):
    run(programs / "readme0", cwd=programs)


def test_the_readmes_python_program(smollm2, tmp_path):
    (tmp_path / smollm2.name).symlink_to(smollm2)
    program, _, _ = blocks("python")
    check = "assert out.shape == x.shape and type(out) is np.ndarray and model.generate('Once', 2).text"
    run(sys.executable, "-c", f"{program}\n{check}", cwd=tmp_path)


def test_the_readmes_program_of_the_manager(tmp_path):
    pytest.importorskip("torch")
    _, program, _ = blocks("python")
    check = "assert out.shape == q.shape and m.report()['attention_speedup'] > 0"
    run(sys.executable, "-c", f"{program}\n{check}", cwd=tmp_path)


def test_the_readmes_program_of_a_transformers_model(tmp_path):
    pytest.importorskip("transformers")
    *_, program = blocks("python")
    check = "assert len(done.fused) == 4 and not done.refused and tokens.shape[1] > 3"
    run(sys.executable, "-c", f"{program}\n{check}", cwd=tmp_path)


@pytest.mark.parametrize("name", sorted(path.stem for path in ROOT.glob("examples/*.cpp")))
def test_cpp_examples(programs, name):
    output = run(programs / name, cwd=programs)
    assert re.fullmatch(r"out\[99, 7, 63\] = 1\n(.*\n)+", output) and output.count("->") == 1


PYTHON_EXAMPLES = {  # by name: what it prints; each checks its results itself
    "attention": r"ndarray \(2, 128, 8, 64\) float32\n",
    "custom_triton_kernel": r"served by custom::gelu_linear\nserved by custom::swish\nrefused: .*::wrong: its .*\n",
    "fuse_model": r"(.*\n)+the same 16 tokens while fused\nkernel calls saved: \d+%\nand after\n",
    "paged_decode": r"(step \d: lengths \[\d+, \d+\], out \(2, 8, 64\)\n){3}3 calls of attention\n",
    "quantized_kv": r"(\w+: \d\.\d times less memory than f32, 0\.\d+ from exact\n){3}dense int4: .*\n",
    "sparse_attention": r"n:m: \(1, 512, 8, 64\), 0.*\nblock: \(1, 512, 8, 64\), .*\npages: \(1, 8, 64\),.*\n",
    "sparse_ffn": r"(.*: 0\.\d+ of the dense f32 weights' memory.*\n){3}served by cpu::\w+\n",
    "writing_a_backend": r"by name: .*\nby device: .* on meta\nrefused: .* takes no softcap\n",
}


@pytest.mark.parametrize("name", sorted(path.stem for path in ROOT.glob("examples/*.py")))
def test_python_examples(tmp_path, name):
    program = ROOT / f"examples/{name}.py"
    for package in ("torch", "triton", "transformers"):
        if re.search(rf"^(import|from) {package}\b", program.read_text(), re.MULTILINE):
            pytest.importorskip(package)
    assert re.fullmatch(PYTHON_EXAMPLES[name], run(sys.executable, program, cwd=tmp_path))


def test_every_example_is_listed():
    listed = set(re.findall(r"^\| \[(\S+)\]\(\1\)", (ROOT / "examples/README.md").read_text(), re.MULTILINE))
    assert listed == {path.name for path in ROOT.glob("examples/*.*")} - {"README.md"}


def test_the_readmes_commands_exist():
    """Every `kf ...` of its table, and every target of make that it names."""
    text = (ROOT / "README.md").read_text()
    commands = {
        tuple(c.split()[: 2 if c.startswith(("bench", "fusion")) else 1]) for c in re.findall(r"`kf ([^`]+)`", text)
    }
    assert len(commands) >= 6
    main = "from sagellm_kernel_fusion.cli import main; main()"
    for command in sorted(commands):
        assert "Usage: kf" in run(sys.executable, "-c", main, *command, "--help", cwd=ROOT)
    for target in set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


@pytest.mark.parametrize("language", ["cpp", "cmake", "python", "sh"])
def test_the_readme_in_chinese_has_the_same_programs(language):
    def code(name: str) -> list[str]:
        return [re.sub(r" +(#|//) .*", "", block) for block in blocks(language, name)]

    assert code("README.zh-CN.md") == code("README.md") != []


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_the_readmes_links_lead_somewhere(name):
    targets = re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text())
    missing = [t for t in targets if "://" not in t and not (ROOT / t).exists()]
    assert len(targets) >= 7 and not missing
