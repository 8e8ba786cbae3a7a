"""Compiles every kernel text with NVRTC, as the library does on a machine with a GPU; none is needed here.

    python3 .ci/compile_kernels.py FOLDER      # where pip has put nvidia-cuda-nvrtc, or a toolkit's library lies

For compute_80, the PTX that the library makes, and for sm_80 and sm_90a, down to the card's own code; texts with wgmma.cu, whose
instructions compute capability 9.0 has alone, for compute_90a and sm_90a.
"""

import ast
import ctypes
import pathlib
import re
import sys

OPS = pathlib.Path(__file__).resolve().parent.parent / "tinyonn" / "src" / "ops"
ARCHITECTURES = ["compute_80", "sm_80", "sm_90a"]
OF_HOPPER = ["compute_90a", "sm_90a"]
# A text as Rust puts it together: concat!("#define ..", include_str!("numbers.cu"), include_str!("rope.cu")).
PIECE = r'"(?:[^"\\]|\\.)*"|include_str!\("[^"]+"\)'
TEXT = re.compile(rf"concat!\(((?:\s*(?:{PIECE})\s*,?)+)\s*\)")


def texts():
    """Every text that a source of the library puts together: its name and itself."""
    found = {}
    for path in sorted(OPS.rglob("*.rs")):
        for match in TEXT.finditer(path.read_text()):
            name, text = [], ""
            for piece in re.findall(PIECE, match[1]):
                if piece.startswith("include_str!"):
                    file = piece.split('"')[1]
                    text += (path.parent / file).read_text()
                else:
                    file = ast.literal_eval(piece)
                    text += file
                name.append(file.strip())
            if any(part.endswith(".cu") for part in name):
                found[" + ".join(name)] = text
    return found


def library(folder):
    found = sorted(pathlib.Path(folder).rglob("libnvrtc.so*"))
    if not found:
        sys.exit(f"error: no libnvrtc below {folder}; give the folder of nvidia-cuda-nvrtc")
    # It looks for these by their name alone.
    for builtins in found[0].parent.glob("libnvrtc-builtins.so*"):
        ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(found[0]))


def compiled(nvrtc, name, text, architecture):
    """The problem, if there is one, warnings as well."""
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), name.encode(), 0, None, None)
    options = (ctypes.c_char_p * 1)(f"--gpu-architecture={architecture}".encode())
    code = nvrtc.nvrtcCompileProgram(program, 1, options)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    said = log.value.decode(errors="replace").strip()
    return said or (f"NVRTC's error {code}" if code else "")


def main():
    nvrtc = library(sys.argv[1])
    found = texts()
    left = {path.name for path in OPS.rglob("*.cu")} - {part for name in found for part in name.split(" + ")}
    if left:
        sys.exit(f"error: no source puts {', '.join(sorted(left))} into a text")
    problems = [
        f"{name} for {architecture}:\n{problem}"
        for name, text in found.items()
        for architecture in (OF_HOPPER if "wgmma.cu" in name else ARCHITECTURES)
        if (problem := compiled(nvrtc, name, text, architecture))
    ]
    if problems:
        sys.exit("\n".join(problems))
    print(f"{len(found)} texts compile, each for {', '.join(ARCHITECTURES)} or for {', '.join(OF_HOPPER)}: {'; '.join(found)}")


if __name__ == "__main__":
    main()
