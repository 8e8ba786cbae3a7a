"""Plants violations and looks for them: `python3 .ci/test_source_rules.py`."""

import pathlib
import tempfile
import unittest

from source_rules import violations

OPS = "tinyonn/src/ops/mod.rs"
TRAIN = "tinyonn/src/train/step.rs"


def found(files: dict[str, str]) -> list[str]:
    """Violations in files, given as path and text."""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return violations(root, list(files))


class SourceRules(unittest.TestCase):
    def assert_places(self, files: dict[str, str], *places: str) -> None:
        messages = found(files)
        self.assertEqual([message.split(": ")[0] for message in messages], list(places), messages)
        for message in messages:
            self.assertIn("; ", message, "it says what to do")

    def test_calls_without_gradient(self) -> None:
        for call in [
            "candle_nn::ops::softmax_last_dim(&x)?",
            "candle_nn::ops::rms_norm(&x, &w, 1e-6)?",
            "candle_nn::ops::layer_norm(&x, &w, &b, 1e-6)?",
            "candle_nn::rotary_emb::rope(&x, &cos, &sin)?",
            "candle_nn::rotary_emb::rope_i(&x, &cos, &sin)?",
            "x.apply_op1_no_bwd(&op)?",
            "x.apply_op3_no_bwd(&y, &z, &op)?",
            "candle_nn::ops::sdpa(&q, &k, &v)?",
            "loss.backward()?",
            "loss\n        .backward()?",
            "x.scatter_add(&i, &y, 0)?",
            "x.index_add(&i, &y, 0)?",
        ]:
            with self.subTest(call):
                line = 2 + call.count("\n")
                self.assert_places({TRAIN: f"fn f() {{\n    let y = {call};\n}}\n"}, f"{TRAIN}:{line}")

    def test_copies_to_the_host(self) -> None:
        for call in ["x.to_vec1::<f32>()?", "x.to_vec2()?", "x.to_scalar::<f32>()?", "x\n        .to_scalar()?"]:
            with self.subTest(call):
                line = 2 + call.count("\n")
                self.assert_places({TRAIN: f"fn f() {{\n    let y = {call};\n}}\n"}, f"{TRAIN}:{line}")
        self.assert_places({TRAIN: "fn f() { x.to_vec(); }\n"})
        self.assert_places({"tinyonn/src/ops/host.rs": "fn f() { x.to_vec1(); }\n"})
        self.assert_places({"tinyonn/src/checkpoint/x.rs": "fn f() { x.to_vec1(); }\n"})

    def test_imports_that_hide_them(self) -> None:
        self.assert_places({TRAIN: "use candle_nn::{\n    VarBuilder, ops,\n};\n"}, f"{TRAIN}:1")
        self.assert_places({TRAIN: "use candle_nn::{Init, VarBuilder};\n"})

    def test_twins_and_ours_are_free(self) -> None:
        text = "fn f() {\n    rms_norm::forward(x); candle_nn::ops::rms_norm_slow(x); candle_nn::rotary_emb::rope_slow(x); linear::backward(&l);\n}\n"
        self.assert_places({TRAIN: text})

    def test_allowed_files(self) -> None:
        self.assert_places({"tinyonn/src/moe/router.rs": "fn f() { l.backward(); }\n"})
        self.assert_places({"tests/suite/x.rs": "fn f() { l.backward().unwrap(); }\n"})

    def test_comments_literals_and_tests_are_free(self) -> None:
        text = (
            "//! x.backward().unwrap()\n/* panic!() /* nested */ todo!() */\n"
            'const A: &str = "unsafe panic!() \\" .unwrap()";\nconst B: &str = r#"todo!() " dbg!()"#;\n'
            "fn f<'a>(x: &'a str) -> char { '\"' }\n"
            "#[cfg(test)]\nmod tests {\n    fn g() { x.unwrap(); y.backward(); }\n}\n"
        )
        self.assert_places({TRAIN: text})
        self.assert_places({TRAIN: text + "fn h() { x.unwrap(); }\n"}, f"{TRAIN}:10")

    def test_a_test_module_in_its_own_file(self) -> None:
        files = {"tinyonn-macros/src/lib.rs": "#[cfg(test)]\nmod tests;\n", "tinyonn-macros/src/tests.rs": "fn f() { x.unwrap(); }\n"}
        self.assert_places(files)
        self.assert_places({**files, "tinyonn-macros/src/lib.rs": "mod tests;\n"}, "tinyonn-macros/src/tests.rs:1")

    def test_panics(self) -> None:
        for call in ["x.unwrap()", 'x.expect("y")', 'panic!("y")', "todo!()", "unimplemented!()", "dbg!(x)"]:
            with self.subTest(call):
                self.assert_places({"experiments/src/lib.rs": f"fn f() {{\n    {call};\n}}\n"}, "experiments/src/lib.rs:2")

    def test_unsafe(self) -> None:
        bare, said = "fn f() {\n    unsafe { g() }\n}\n", "fn f() {\n    // SAFETY: g is safe.\n    let x =\n        unsafe { g() };\n}\n"
        self.assert_places({TRAIN: said}, f"{TRAIN}:4")
        self.assert_places({"tests/suite/x.rs": said}, "tests/suite/x.rs:4")
        self.assert_places({OPS: bare}, f"{OPS}:2")
        self.assert_places({OPS: said})
        self.assert_places({OPS: said + "fn h() {\n    unsafe { g() }\n}\n"}, f"{OPS}:7")

    def test_long_files(self) -> None:
        self.assert_places({"tests/suite/x.rs": "\n" * 500})
        self.assert_places({"tests/suite/x.rs": "\n" * 501}, "tests/suite/x.rs:501")
        self.assert_places({"README.md": "\n" * 501}, "README.md:501")
        self.assert_places({"RESULTS.md": "\n" * 501, "results/compare.md": "\n" * 501})

    def test_items_without_an_example(self) -> None:
        place = "tinyonn/src/train/rate.rs"
        item = "pub fn rate() -> f64 {\n    1.0\n}\n"
        of = lambda *lines: "".join(f"/// {line}\n" for line in lines) + item
        self.assert_places({place: "/// The rate.\n" + item}, f"{place}:2")
        self.assert_places({place: of("```", "assert_eq!(rate(), 1.0);", "```")})
        self.assert_places({place: of("```no_run", "rate();", "```")})
        # What is not compiled, not seen, or no code, shows nothing.
        self.assert_places({place: of("```text", "rate()", "```")}, f"{place}:4")
        self.assert_places({place: of("```", "# rate();", "```")}, f"{place}:4")
        self.assert_places({place: of("```", "other();", "```", "rate()")}, f"{place}:5")
        # The page of its module shows it as well; that of another does not.
        self.assert_places({place: item, "tinyonn/src/train/mod.rs": "//! ```\n//! rate();\n//! ```\n"})
        self.assert_places({place: item, "tinyonn/src/train.rs": "//! ```\n//! rate();\n//! ```\n"})
        self.assert_places({place: item, "tinyonn/src/moe/mod.rs": "//! ```\n//! rate();\n//! ```\n"}, f"{place}:1")
        # What stays in the crate, in tests or in other crates needs none.
        self.assert_places({place: item.replace("pub", "pub(crate)"), "experiments/src/rate.rs": item})
        self.assert_places({place: f"#[cfg(test)]\nmod tests {{\n    {item}}}\n"})
        self.assert_places({place: "pub struct Rate;\nimpl Rate {\n    pub const fn of(self) {}\n}\n"}, f"{place}:1", f"{place}:3")


if __name__ == "__main__":
    unittest.main()
