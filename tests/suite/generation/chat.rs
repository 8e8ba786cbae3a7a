//! Conversations by template, as transformers writes them (`make_continuations.py`).

use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use rstest::rstest;
use serde_json::{Value, json};
use tempfile::TempDir;
use tinyonn::checkpoint::{ModelFolder, ParamStore};
use tinyonn::generation::{ChatTemplate, end_ids};
use tinyonn::phases::text;

use super::fixture;
use crate::models::message;

#[test]
fn conversations_are_those_of_transformers() {
    for case in fixture("conversations.json").as_array().unwrap() {
        let source = case["template"].as_str().unwrap();
        let template = ChatTemplate::new(source, case["special_tokens"].clone(), "chat_template.jinja").unwrap();
        let rendered = template.render(&case["messages"], case["answer"].as_bool().unwrap());
        match case["raises"].as_str() {
            None => assert_eq!(rendered.unwrap(), case["text"].as_str().unwrap()),
            Some(raised) => {
                let error = message(rendered);
                assert!(error.contains(&format!("refuses the conversation: {raised};")), "{error}");
                assert!(error.starts_with("chat_template.jinja: ") && error.contains("--chat"), "{error}");
            }
        }
    }
}

fn rendered(source: &str) -> Result<String, String> {
    let messages = json!([{ "role": "user", "content": "é\"" }]);
    let template = ChatTemplate::new(source, json!({}), "t.jinja").map_err(|e| e.to_string())?;
    template.render(&messages, true).map_err(|e| e.to_string())
}

/// Forms that the fixtures do not have.
#[rstest]
#[case(
    "{{ {'b': 'é', 'a': 1} | tojson(sort_keys=true, ensure_ascii=true, separators=(',', ':')) }}",
    r#"{"a":1,"b":"\u00e9"}"#
)]
#[case("{%- generation -%}  a  {%- endgeneration +%} b {% if 'generation' %}c{% endif %}", "a b c")]
#[case("{{ messages[-1]['content'][::-1] }}|{{ missing }}|{{ missing is defined }}|{{ 7 // 2 }}", "\"é||False|3")]
#[case(
    "{{ 'a\nb'|indent(2, first=true) }}|{{ [1, 2, 3]|batch(2)|list }}|{{ '%04d of 20240101'|format(7) }}",
    "  a\n  b|[[1, 2], [3]]|0007 of 20240101"
)]
#[case("{{ 'at 20240101: {:>5}|{}'.format('a', 'b') }}", "at 20240101:     a|b")]
fn templates_have_more(#[case] source: &str, #[case] expected: &str) {
    assert_eq!(rendered(source).unwrap(), expected);
}

#[test]
fn the_time_is_now() {
    let year = rendered("{{ strftime_now('%Y') }}").unwrap();
    assert!((2024..2200).contains(&year.parse::<i32>().unwrap()));
}

#[rstest]
#[case("{% if %}", "cannot be read")]
#[case("{{ missing.attribute }}", "fails")]
#[case("a\n{{ messages[0].content.nosuch() }}", "(line 2)")]
#[case("{{ strftime_now('%Q') }}", "no form of a time")]
#[case("{% include '/etc/passwd' %}", "fails")]
#[case("{% include 'chat_template' %}", "fails")]
#[case("{% set x = 'x' * 99 %}{{ messages|tojson(separators=[x, x]) }}", "`separators` are longer")]
#[case("{{ 'x' * 9999999 }}", "a product of texts")]
#[case("{{ ('x' * 9999) * 9999 }}", "a product of texts")]
#[case("{% if 'x' * 9 ** 9 %}{% endif %}", "a product of texts")]
#[case("{{ 'a'|indent(18446744073709551615) }}", "a length above")]
#[case("{{ 'a'|indent(width=9223372036854775807) }}", "a length above")]
#[case("{{ messages|batch(9223372036854775807) }}", "a length above")]
#[case("{{ messages|slice(9223372036854775807) }}", "a length above")]
#[case("{{ '%9223372036854775807d'|format(1) }}", "a length above")]
#[case("{{ '%(n)-9223372036854775807s'|format(n='a') }}", "a length above")]
#[case("{{ '%*d'|format(9223372036854775807, 1) }}", "a length above")]
#[case("{{ '{:x>9223372036854775807}'.format('a') }}", "a length above")]
fn a_template_that_is_not_sound_is_refused(#[case] source: &str, #[case] says: &str) {
    let error = rendered(source).unwrap_err();
    assert!(error.starts_with("t.jinja: ") && error.contains(says), "{error}");
}

/// Where a folder keeps its template, the first that is there.
/// One instruction may make a text of any length, a few a value that holds itself: what a conversation may take is bounded in bytes, and what never ends in printing is refused.
#[rstest]
#[case::doubled(
    "{% set n = namespace(x='0123456789') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    MUCH
)]
#[case::added(
    "{% set n = namespace(x='0123456789') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    MUCH
)]
#[case::repeated("{% set n = 99000000 %}{{ 'x' * n }}", MUCH)]
#[case::repeated_in_turn(
    "{% set k = 900000 %}{% set n = namespace(x=[]) %}{% for i in range(90) %}{% set n.x = n.x + ['x' * k] %}{% endfor %}",
    MUCH
)]
#[case::captured(
    "{% set n = namespace(x='0123456789') %}{% for i in range(60) %}{% set x %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = x %}{% endfor %}",
    MUCH
)]
#[case::captured_as_it_stands(
    "{% set x %}{% for i in range(9000) %}{% for i in range(9000) %}a long text that stands in a template{% endfor %}{% endfor %}{% endset %}",
    MUCH
)]
#[case::written(
    "{% for i in range(9000) %}{% for i in range(9000) %}a long text that stands in a template{% endfor %}{% endfor %}",
    MUCH
)]
#[case::replaced(
    "{% set x = 'a' * 900000 %}{{ x|replace('a', 'aaaaaaaaaabbbbbbbbbbaaaaaaaaaabbbbbbbbbbcccccccccc') }}",
    MUCH
)]
#[case::replaced_by_method(
    "{% set x = 'a' * 900000 %}{{ x.replace('a', 'aaaaaaaaaabbbbbbbbbbaaaaaaaaaabbbbbbbbbbcccccccccc') }}",
    MUCH
)]
#[case::joined("{% set x = 'x' * 9000 %}{{ range(9999)|join(x) }}", MUCH)]
#[case::joined_by_method("{% set x = 'x' * 9000 %}{{ x.join(range(9999)|map('string')) }}", MUCH)]
#[case::spread_out(
    "{% set a = 'a' * 90000 %}{% set b = 'b' * 900 %}{% set x = [a, 'a', b] %}{{ 'a' ~ (x[0]|replace(*x[1:])) }}",
    MUCH
)]
#[case::cut_into_pieces("{{ ('a b ' * 200000).split(' ') }}{{ ('a b ' * 200000)|list|length }}", MUCH)]
#[case::in_json(
    "{% set n = namespace(x=['x']) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x|tojson }}",
    MUCH
)]
#[case::within_each_other(
    "{% set n = namespace(x=['x']) %}{% for i in range(200) %}{% set n.x = [n.x] %}{% endfor %}",
    "within each other"
)]
#[case::within_itself("{% set n = namespace() %}{% set n.x = n %}{{ n }}", "within each other")]
#[case::compared(
    "{% set n = namespace() %}{% set m = namespace(x=n) %}{% set n.x = m %}{% if n == m %}a{% endif %}",
    "within each other"
)]
#[case::in_a_block(
    "{% block a %}{% set n = namespace(x='0123456789') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{% endblock %}",
    MUCH
)]
#[case::in_a_macro(
    "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}{% set n = namespace(x='0123456789') %}{% for i in range(60) %}{% set n.x = m(n.x) %}{% endfor %}",
    MUCH
)]
fn what_a_template_makes_is_bounded(#[case] source: &str, #[case] says: &str) {
    let error = rendered(source).unwrap_err();
    assert!(error.contains("chat template fails") && error.contains(says), "{error}");
}

const MUCH: &str = "too much of a conversation";

/// What every template does, of as much as anyone says: text put together message by message, and looked through at each.
#[test]
fn a_long_conversation_is_within_the_bound() {
    let source = "{% set n = namespace(all='', seen=[]) %}{% for m in messages %}{% set n.all = n.all ~ m.content.strip() + '\n' %}{% set n.seen = n.seen + [m.role] %}{% if m in messages and loop.index0 == messages|length - 1 %}{{ n.all }}{{ n.seen|length }}{{ m|tojson|length }}{% endif %}{% endfor %}";
    let template = ChatTemplate::new(source, json!({}), "t.jinja").unwrap();
    let messages: Vec<Value> =
        (0..500).map(|at| json!({ "role": "user", "content": format!("{at} ").repeat(300) })).collect();
    let text = template.render(&json!(messages), true).unwrap();
    assert!(text.starts_with("0 0 ") && text.len() > 500 * 600, "{}", text.len());
}

#[test]
fn a_folders_template_is_found() {
    let parent = TempDir::new().unwrap();
    let dir = parent.path().join("model");
    let mut store = ParamStore::new(&Device::Cpu);
    store.insert("norm.weight", Tensor::ones(4, DType::F32, &Device::Cpu).unwrap()).unwrap();
    ModelFolder::save(&dir, &json!({ "model_type": "qwen3", "eos_token_id": 9 }), &store, None).unwrap();
    let folder = ModelFolder::open(&dir).unwrap();
    let write = |name: &str, value: Value| fs::write(dir.join(name), value.to_string()).unwrap();
    let read = || ChatTemplate::read(&folder).unwrap().map(|template| template.render(&json!([]), true).unwrap());
    assert_eq!(read(), None);
    write("chat_template.json", json!({ "chat_template": "earlier" }));
    assert_eq!(read().unwrap(), "earlier");
    let marks = json!({ "bos_token": { "content": "<s>", "lstrip": false }, "eos_token": "</s>" });
    write("special_tokens_map.json", marks);
    let named = json!([{ "name": "tools", "template": "no" }, { "name": "default", "template": "{{ bos_token }}one{{ eos_token }}" }]);
    write("tokenizer_config.json", json!({ "bos_token": null, "eos_token": "<old>", "chat_template": named.clone() }));
    assert_eq!(read().unwrap(), "<s>one</s>");
    // As transformers does, which takes the older file where the newer one does not list its tokens.
    let listed = json!({ "1": { "content": "<s>", "special": true } });
    write(
        "tokenizer_config.json",
        json!({ "eos_token": "<new>", "added_tokens_decoder": listed, "chat_template": named }),
    );
    assert_eq!(read().unwrap(), "one<new>");
    fs::write(dir.join("chat_template.jinja"), "first\n").unwrap();
    assert_eq!(read().unwrap(), "first");
    fs::write(dir.join("tokenizer_config.json"), "{").unwrap();
    assert!(message(ChatTemplate::read(&folder)).contains("tokenizer_config.json"));
}

/// A GGUF file has its template and the ends of an answer inside.
#[test]
fn a_files_template_and_ends_are_found() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/gguf/llama_k.gguf");
    let folder = ModelFolder::open(path).unwrap();
    let template = ChatTemplate::read(&folder).unwrap().unwrap();
    let said = template.render(&json!([{ "role": "user", "content": "Hello" }]), true).unwrap();
    assert!(said.contains("Hello") && said.contains("<|end|>"), "{said}");
    let tokenizer = text::tokenizer(&folder).unwrap();
    let ends = end_ids(&folder, &tokenizer).unwrap();
    assert!(ends.contains(&tokenizer.eos()), "{ends:?}");
    // What a user writes as text, a prompt reads as the token.
    let [plain, special] = [&tokenizer, &tokenizer.for_prompts()].map(|t| t.encode("<|end|>").unwrap().len());
    assert!(plain > special && special == 1);
}
