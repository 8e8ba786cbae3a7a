"""Writes what fuzzing begins with, made of the tests' fixtures: `corpus/TARGET/` and `dictionaries/TARGET.dict`.

    python3 fuzz/seeds.py
"""

import gzip
import itertools
import json
import pathlib
import re
import struct

HERE = pathlib.Path(__file__).resolve().parent
FIXTURES = HERE.parent / "tests" / "fixtures"
V1 = FIXTURES / "v1"
BETWEEN = b"\n%%%\n"
# Larger ones are slow to mutate.
LARGEST = 40_000
JINJA = (
    "{{ {% {%- -%} %} }} {# #} if elif else endif for in endfor set endset macro endmacro block endblock generation "
    "endgeneration break continue loop.index0 loop.last is not defined none true false namespace( range( messages "
    "message role content add_generation_prompt tools bos_token raise_exception( strftime_now( %Y %s |tojson |trim "
    "|length |join( |replace( |indent( |items |list |sort |reverse |default( |upper |batch(3) .strip() .split( "
    ".startswith( .replace( .items() .get( [::-1] * ~ + 999999999"
).split(" ")


def parts(*files: bytes | str) -> bytes:
    return BETWEEN.join(file.encode() if isinstance(file, str) else file for file in files)


def unframed(path: pathlib.Path) -> tuple[dict, bytes]:
    """Header and bytes of a safetensors file."""
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def framed(header: dict, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensors(shapes: dict[str, tuple[str, list[int]]]) -> dict:
    """A header of tensors of these types and shapes, one behind the other."""
    sizes, at, header = {"F64": 8, "F32": 4, "U32": 4, "I64": 8, "BF16": 2, "F16": 2, "U8": 1}, 0, {}
    for name, (dtype, shape) in shapes.items():
        size = sizes[dtype]
        for dimension in shape:
            size *= dimension
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return header


def gguf_string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf_value(value: object) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<IB", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + gguf_string(value)
    if isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(gguf_string, value))
    kind, letter = (6, "f") if isinstance(value[0], float) else (5, "i")
    return struct.pack(f"<IIQ{len(value)}{letter}", 9, kind, len(value), *value)


def gguf(architecture: str, keys: dict, kind: int, block: tuple[int, int]) -> bytes:
    """A model of one layer, 32 wide, whose matrices are of the type `kind`, of so many values and bytes a block."""
    own = {"context_length": 64, "embedding_length": 32, "block_count": 1, "feed_forward_length": 64}
    own |= {"attention.head_count": 2, "attention.head_count_kv": 1, "attention.layer_norm_rms_epsilon": 1e-5}
    keys = {"general.architecture": architecture} | {f"{architecture}.{key}": own[key] for key in own} | keys
    tokens = len(keys.get("tokenizer.ggml.tokens", "abcd"))
    sizes = {"token_embd.weight": [32, tokens], "blk.0.attn_norm.weight": [32], "blk.0.attn_q.weight": [32, 32]}
    sizes |= {"blk.0.attn_k.weight": [32, 16], "blk.0.attn_v.weight": [32, 16], "blk.0.attn_output.weight": [32, 32]}
    sizes |= {"blk.0.ffn_norm.weight": [32], "blk.0.ffn_gate.weight": [32, 64], "blk.0.ffn_up.weight": [32, 64]}
    sizes |= {"blk.0.ffn_down.weight": [64, 32], "output_norm.weight": [32]}
    head = b"GGUF" + struct.pack("<IQQ", 3, len(sizes), len(keys))
    head += b"".join(gguf_string(key) + gguf_value(keys[key]) for key in keys)
    at = 0
    for name, shape in sizes.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        of, (values, size) = (kind, block) if len(shape) > 1 else (0, (1, 4))
        head += gguf_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, of, at)
        at = (at + count // values * size + 31) // 32 * 32
    return head.ljust((len(head) + 31) // 32 * 32, b"\0") + bytes(range(1, 33)) * (at // 32)


def ggufs() -> list[bytes]:
    bpe = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.merges": ["a b", "ab c"]}
    bpe |= {"tokenizer.ggml.tokens": ["a", "b", "c", "ab", "abc", "\u0120", "<|end|>"]}
    bpe |= {"tokenizer.ggml.token_type": [1, 1, 1, 1, 1, 1, 3], "tokenizer.ggml.eos_token_id": 6}
    bpe |= {"tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}
    pieces = ["<unk>", "<s>", "</s>", "\u2581", "\u2581a", "a", "b"] + [f"<0x{byte:02X}>" for byte in range(256)]
    spm = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": pieces}
    spm |= {"tokenizer.ggml.scores": [-float(at) for at in range(len(pieces))]}
    spm |= {"tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 1] + [6] * 256, "tokenizer.ggml.add_bos_token": True}
    spm |= {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "general.alignment": 32}
    scaled = {"qwen2.rope.scaling.type": "linear", "qwen2.rope.scaling.factor": 2.0, "qwen2.rope.freq_base": 1e6}
    made = [("llama", spm, 2, (32, 18)), ("qwen2", bpe | scaled, 8, (32, 34)), ("qwen3", bpe, 0, (1, 4))]
    made += [("llama", {}, kind, block) for kind, block in [(1, (1, 2)), (3, (32, 20)), (6, (32, 22)), (30, (1, 2))]]
    return [gguf(*each) for each in made]


def tokenizers() -> list[bytes]:
    text = "An \u00e9clair for 12 crabs \U0001f980,\n\n  and <|endoftext|> more.\ttabs"
    own = json.loads((V1 / "phase1/tiny-onn/tokenizer.json").read_text())
    found = [parts(json.dumps(own), text)]
    added = {"id": 0, "special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [added | {"content": "<|endoftext|>"}]
    base = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    words = {"type": "WordLevel", "vocab": {"<|endoftext|>": 0, "An": 1, "more": 2}, "unk_token": "<|endoftext|>"}
    piece = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 9}
    piece |= {"vocab": {"<|endoftext|>": 0, "[UNK]": 1, "a": 2, "##n": 3}}
    grams = {"type": "Unigram", "unk_id": 0, "vocab": [["<|endoftext|>", 0.0], ["a", -1.5], ["\u2581", -2.0]]}
    pairs = {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": True, "byte_fallback": True}
    pairs |= {"vocab": {"<|endoftext|>": 0, "a": 1, "n": 2, "an": 3}, "merges": [["a", "n"]], "ignore_merges": True}
    cutters = [
        {"type": "Split", "pattern": {"Regex": "\\s+(?!\\S)|\\p{L}+"}, "behavior": "Isolated", "invert": False},
        {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True},
        {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, {"type": "Whitespace"}]},
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        {"type": "Punctuation", "behavior": "MergedWithNext"},
    ]
    replace = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581"}
    normal = [{"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, replace]}, {"type": "NFC"}]
    normal += [{"type": "NFKD"}, {"type": "Lowercase"}, {"type": "Strip", "strip_left": True, "strip_right": True}, None]
    fallback = [{"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    decoders = [{"type": "Sequence", "decoders": fallback}, {"type": "ByteLevel"}, {"type": "WordPiece"}, None]
    single = [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}
    ends = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special}
    for at, model in enumerate([words, piece, grams, pairs] * 3):
        whole = base | {"normalizer": normal[at % 6], "pre_tokenizer": cutters[at % 5], "decoder": decoders[at % 4]}
        whole |= {"post_processor": ends if at % 2 else None, "model": model}
        found.append(parts(json.dumps(whole, ensure_ascii=at % 2 == 0), text))
    return found


def templates() -> list[bytes]:
    told = json.loads((FIXTURES / "continuations/conversations.json").read_text())
    return [parts(case["template"], json.dumps(case["messages"])) for case in told]


def benchmarks() -> list[bytes]:
    found = []
    for metric, choices in [("acc_raw", 2), ("acc_per_char", 3), ("logits_per_byte", 2), ("greedy_match", 1)]:
        config = json.dumps({"task_name": "x", "task_config": {"primary_metric": metric}, "num_instances": 2})
        line = {"request_type": "loglikelihood", "request": {"context": "Q?", "continuation": " A"}, "label": 0}
        lines = "\n".join(json.dumps(line | {"doc_id": item, "idx": at}) for item in range(2) for at in range(choices))
        found += [parts(config, lines), parts(config, gzip.compress(lines.encode(), mtime=0))]
    return found


def scans() -> list[bytes]:
    header, data = unframed(V1 / "scan.safetensors")
    record = json.loads(header.pop("__metadata__")["tinyonn.scan"])["record"]
    whole = parts(json.dumps(record), json.dumps(header), data)
    names = [name for name in header if re.match(r"layers\.\d+\.neurons\.", name)]
    few = {name: ("F64", [1, 2]) for name in names} | {"loss": ("F64", [1])}
    plain = record | {"log1p": "off", "partition": None, "tasks": ["a"], "tokens": [3], "format": 2, "sources": "0"}
    return [whole, parts(json.dumps(plain), json.dumps(tensors(few)), struct.pack("<9d", *range(9)))]


def passes() -> list[bytes]:
    record = {"format": 1, "version": "0.1.0", "pass": "inputs", "of": {"model": "0", "text": "0"}, "dtype": "f32"}
    record |= {"devices": ["cpu"], "shards": [{"index": 0, "of": 2}], "by_rows": False}
    rows = {"tasks": ("U32", [3, 1]), "documents": ("U32", [3, 1]), "layers.0": ("F32", [3, 2]), "batches": ("U32", [3, 1])}
    shapes = {f"train.tokens.{name}": shape for name, shape in rows.items()}
    shapes |= {"scatter.0.rows": ("F64", [2, 1]), "scatter.0.means": ("F64", [1, 2]), "scatter.0.products": ("F64", [3])}
    values = [struct.pack(f"<{count}{kind}", *range(count)) for kind, count in (("I", 6), ("f", 6), ("I", 3), ("d", 7))]
    labels = record | {"pass": "labels", "by_rows": None}
    columns = {f"test.labels.{name}": ("U32", [2, width]) for name, width in (("layers.0", 2), ("batches", 1))}
    losses = record | {"pass": "losses", "by_rows": None, "then": None}
    scored = {"own.losses.batches": ("U32", [2, 1]), "own.losses.losses": ("U32", [2, 2])}
    scored |= {"own.loads.batches": ("U32", [1, 1]), "own.loads.layers.0": ("U32", [1, 16])}
    refit = record | {"pass": {"refit": {"round": 1, "set": {"random": 2}}}, "then": "refit"}
    seen = [parts(json.dumps(each), json.dumps(tensors(shapes)), b"".join(values)) for each in (record, refit)]
    words = [(labels, columns, 6), (losses, scored, 23)]
    return seen + [parts(json.dumps(of), json.dumps(tensors(shapes)), struct.pack(f"<{count}I", *range(count))) for of, shapes, count in words]


def states() -> list[bytes]:
    about = {"version": 1, "step": 4, "tally": [0.5], "best": None, "settings": {"rate": 0.5}}
    plain = {"w": ("F32", [2, 3]), "bias": ("F32", [3])}
    adamw = plain | {"m/w": ("F32", [2, 3]), "v/w": ("F32", [2, 3]), "steps/w": ("U32", [1])}
    best = adamw | {"best/w": ("F32", [2, 3]), "best/bias": ("F32", [3])}
    found = []
    for shapes, value in [(plain, None), (adamw, None), (best, 1.5)]:
        header = {"__metadata__": {"tinyonn.state": json.dumps(about | {"best": value})}} | tensors(shapes)
        found.append(parts(json.dumps(header), struct.pack("<32f", *[at / 8 for at in range(32)])))
    return found


def checkpoints() -> list[bytes]:
    found = []
    for folder in [V1 / "task", V1 / "replicas", V1 / "phase1/tiny-onn", V1 / "cache/dense-1fb6e7749f5ee7aa"]:
        header, data = unframed(folder / "model.safetensors")
        found.append(parts((folder / "config.json").read_bytes(), json.dumps(header), data))
    return found


def indices() -> list[bytes]:
    one, two = ("model-0000%d-of-00002.safetensors" % at for at in (1, 2))
    made = [{"a": one, "b": two}, {"a": two, "b": one}, {"a": "../outside.safetensors"}, {"a": "./" + one}, {}]
    made += [{"a": "/etc/passwd"}, {"a": one + "\0", "b": two}]
    made = [json.dumps({"metadata": {"total_size": 16}, "weight_map": places}).encode() for places in made]
    return made + contents(FIXTURES.rglob("*.index.json"))


def metrics() -> list[bytes]:
    log = (V1 / "cache/dense-1fb6e7749f5ee7aa/pretrain.jsonl").read_bytes()
    own = b'{"step":1,"stage":"smk","loss":2.125}\n{"step":2,"stage":"smk","loss":1e-5}\n{"step":2,"stage":"x","a":1}\n'
    return [parts(log), parts(own, b""), parts(own[:-9], b"\x18" + bytes(15))]


def token_ids() -> list[bytes]:
    made = [b"[[1, 2], [3, 4]]", b"\xef\xbb\xbf[[1]]"]
    return made + [parts(json.dumps(tensors({"input_ids": (kind, [2, 3])})), bytes(48)) for kind in ("I64", "U32")]


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(value[key])}" for key in value if value[key] is not None) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def settings() -> list[bytes]:
    found = [json.loads((V1 / name).read_text())["settings"] for name in ("phase1/phase1.json", "compare/compare.json")]
    lines = ["".join(f"{key} = {toml(each[key])}\n" for key in each if each[key] is not None) for each in found]
    own = b"active_share = 0.5\nvariant = 'Pruned'\ndistil = { steps = 3 }\n[smk.optimizer]\nrule = 'lion'\nrate = nan\n"
    return [text.encode() for text in lines] + [own] + contents(V1.glob("*.toml"))


def texts() -> list[bytes]:
    made = [b'{"text": "a\\u00e9", "x": [NaN, -Infinity, {"y": null}]}\n{"text": ""}\n', b"Prose.\n\nAnd more.\r\n"]
    made += [b"\x1f\x8b\x08\x00", b"PAR1", b"version https://git-lfs.github.com/spec/v1\n", b'{"a": "\\ud800", "text": "b"}']
    return made + contents([V1 / "a.jsonl", V1 / "b.jsonl"])


def contents(paths) -> list[bytes]:
    return [path.read_bytes() for path in sorted(paths) if path.stat().st_size <= LARGEST]


def configs() -> list[bytes]:
    refused = json.loads((FIXTURES / "decoders/refused.json").read_text())
    inner = refused.values() if isinstance(refused, dict) else refused
    cases = [json.dumps(case["config"] if "config" in case else case).encode() for case in inner if isinstance(case, dict)]
    return contents(FIXTURES.rglob("config.json")) + contents((FIXTURES / "decoders/published").glob("*.json")) + cases


def small_files() -> list[bytes]:
    header, data = tensors({"a": ("F32", [2, 3]), "b": ("BF16", [4]), "c": ("U32", []), "d": ("U8", [0])}), bytes(36)
    header["__metadata__"] = {"format": "pt"}
    return [framed(header, data)] + contents(FIXTURES.rglob("*.safetensors"))


SEEDS = {
    "config_json": configs,
    "safetensors": small_files,
    "safetensors_index": indices,
    "gguf": ggufs,
    "tokenizer": tokenizers,
    "chat_template": templates,
    "settings_toml": settings,
    "text_jsonl": texts,
    "metrics_jsonl": metrics,
    "benchmark": benchmarks,
    "scan_file": scans,
    "pass_file": passes,
    "train_state": states,
    "checkpoint": checkpoints,
    "run_files": lambda: contents(V1.glob("*/*.json")) + contents((FIXTURES / "golden").glob("*.json")),
    "token_ids": token_ids,
}


def words(seeds: list[bytes]) -> list[str]:
    """Keys and short texts of the seeds."""
    text = "\n".join(seed.decode("utf-8", "ignore") for seed in seeds)
    quoted = re.findall(r'"([A-Za-z0-9_.,<>|/-]{2,48})"', text)
    names = re.findall(r"\b([a-z_]+(?:\.[a-z_]+)+)\b", text)
    return [word for word, _ in itertools.groupby(sorted(quoted + names))]


def main() -> None:
    for target, made in SEEDS.items():
        seeds = made()
        folder = HERE / "corpus" / target
        folder.mkdir(parents=True, exist_ok=True)
        for at, seed in enumerate(seeds):
            (folder / f"seed-{at:03}").write_bytes(seed)
        found = words(seeds) + (JINJA if target in ("chat_template", "gguf") else [])
        found += ["18446744073709551615", "9007199254740993", "-1", "1e308", "\\xef\\xbb\\xbf", "\\x0a%%%\\x0a"]
        # In a dictionary a backslash begins a byte's number.
        lines = [word if word.startswith("\\x") else word.replace("\\", "\\\\").replace('"', '\\"') for word in found]
        place = HERE / "dictionaries" / f"{target}.dict"
        place.parent.mkdir(exist_ok=True)
        place.write_text("".join(f'"{line}"\n' for line in lines if line.isascii()))
        print(f"{target}: {len(seeds)} seeds of {sum(map(len, seeds))} bytes, {len(lines)} words")


if __name__ == "__main__":
    main()
