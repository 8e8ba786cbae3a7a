//! Text behind prompts and in conversations: what is printed, what is written, and what cannot be gone on with.

use std::fs;

use rstest::rstest;
use serde_json::{Value, json};

use super::{Place, UPCYCLE, assert_done, assert_refused};

const GENERATE: &str = env!("CARGO_BIN_EXE_exp_generate");
const SPARSIFY: &str = env!("CARGO_BIN_EXE_exp_sparsify");

/// A place whose dense model has a chat template, and a variant of it.
fn place() -> Place {
    let place = Place::new();
    let template = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}({{ m.content }}){% endfor %}:";
    fs::write(place.path("dense/chat_template.jinja"), template).unwrap();
    assert_done(&place.run(UPCYCLE, "--model dense --variant TinyOnn --out sparse"));
    place
}

/// The lines of JSON that the program prints.
fn lines(place: &Place, arguments: &str) -> Vec<Value> {
    let output = place.run(GENERATE, &format!("{arguments} --json"));
    assert_done(&output);
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_variant_all_active_writes_what_the_dense_model_writes() {
    let place = place();
    let [dense, sparse] =
        ["dense", "sparse"].map(|model| lines(&place, &format!("{model} --prompt sort --max-tokens 20")));
    assert_eq!(dense, sparse);
    assert_eq!((dense[0]["tokens"].as_array().unwrap().len(), &dense[0]["ended"]), (20, &json!("length")));
    let routed = place.run(GENERATE, "sparse --prompt sort --max-tokens 20 --active routed --stats");
    let share = String::from_utf8_lossy(&routed.stderr).into_owned();
    let share: f64 = share.split("; ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().parse().unwrap();
    // 64 of 100 experts; those of 120 neurons have one or two.
    assert!((share - 64.0).abs() < 5.0, "{share}");
    // What a terminal sees, as it is written.
    let shown = place.run(GENERATE, "dense --prompt sort --max-tokens 20 --stats");
    assert_eq!(String::from_utf8_lossy(&shown.stdout), format!("{}\n", dense[0]["text"].as_str().unwrap()));
    let stats = String::from_utf8_lossy(&shown.stderr).into_owned();
    for word in ["20 written", "the first after", "tokens a second", "100.0 % active"] {
        assert!(stats.contains(word), "{stats}");
    }
}

#[test]
fn prompts_are_continued_as_they_are_alone_and_seeds_decide() {
    let place = place();
    let drawn = |prompts: &str, seed: u32| {
        let how = "--max-tokens 12 --temperature 1.5 --top-k 40 --top-p 0.95 --min-p 0.01 --repetition-penalty 1.1";
        lines(&place, &format!("sparse --active routed {prompts} {how} --seed {seed}"))
    };
    let together = drawn("--prompt sort --prompt 12+30= --prompt so", 1);
    assert_eq!(together.len(), 3);
    assert_eq!(together[0], drawn("--prompt sort", 1)[0]);
    assert_ne!(together[0], drawn("--prompt sort", 2)[0]);
}

/// Line by line, each answer is that of the conversation up to there.
#[test]
fn a_conversation_goes_on() {
    let place = place();
    fs::write(place.path("said"), "sort\n\n12+30=\n").unwrap();
    let mut talk = place.command(GENERATE, "dense --chat --max-tokens 8 --json");
    let output = talk.stdin(fs::File::open(place.path("said")).unwrap()).output().unwrap();
    assert_done(&output);
    let heard: Vec<Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((heard.len(), heard[0]["prompt"].as_str()), (2, Some("(sort):")));
    let first = heard[0]["text"].as_str().unwrap();
    let whole = json!([
        { "role": "user", "content": "sort" }, { "role": "assistant", "content": first }, { "role": "user", "content": "12+30=" },
    ]);
    fs::write(place.path("talk.json"), whole.to_string()).unwrap();
    assert_eq!(lines(&place, "dense --messages talk.json --max-tokens 8")[0], heard[1]);
}

#[test]
fn an_answer_ends_where_it_is_told_to() {
    let place = place();
    let whole = lines(&place, "dense --prompt sort --max-tokens 30")[0].clone();
    let tokens: Vec<u64> = whole["tokens"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    let stopped = lines(&place, &format!("dense --prompt sort --max-tokens 30 --stop-id {}", tokens[4]))[0].clone();
    let end = tokens.iter().position(|id| *id == tokens[4]).unwrap();
    assert_eq!(stopped["tokens"], json!(tokens[..=end]));
    assert_eq!(stopped["ended"], "stop");
    let text = whole["text"].as_str().unwrap();
    let (at, stop) = text.char_indices().skip(3).find(|(_, c)| c.is_ascii_alphanumeric()).unwrap();
    let first = text.find(stop).unwrap();
    assert!(first <= at);
    let stopped = lines(&place, &format!("dense --prompt sort --max-tokens 30 --stop {stop}"))[0].clone();
    assert_eq!((stopped["text"].as_str(), &stopped["ended"]), (Some(&text[..first]), &json!("stop")));
}

#[test]
fn conversations_go_by_the_template() {
    let place = place();
    let said = lines(&place, "dense --chat --prompt sort --max-tokens 3");
    assert_eq!(said[0]["prompt"], "(sort):");
    fs::write(
        place.path("talk.json"),
        json!([{ "role": "user", "content": "a" }, { "role": "assistant", "content": "b" }]).to_string(),
    )
    .unwrap();
    assert_eq!(lines(&place, "dense --messages talk.json --max-tokens 3")[0]["prompt"], "(a)(b):");
}

#[test]
fn paths_are_shown_and_written() {
    let place = place();
    let show = "sparse --active routed --prompt sort --max-tokens 6 --show-routing paths.html";
    let output = place.run(GENERATE, show);
    assert_done(&output);
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.starts_with("sort") && shown.contains("groups of layer 1:"), "{shown}");
    let page = fs::read_to_string(place.path("paths.html")).unwrap();
    assert!(
        page.contains("Paths through TinyOnn") && page.contains("experts: ") && !page.contains("<script"),
        "{page}"
    );
    assert!(!page.contains("http://") && !page.contains("https://"));
    // The prompt and all but the last token were read: a row each.
    let written =
        lines(&place, "sparse --active routed --prompt sort --max-tokens 6")[0]["tokens"].as_array().unwrap().len();
    let rows = page.matches("<tr><th>").count() - 1;
    assert!(rows >= written && rows < written + 5, "{rows}");
    assert_refused(&place.run(GENERATE, show), &["paths.html", "--overwrite"]);
    assert_done(&place.run(GENERATE, &format!("{show} --overwrite --routing-layer 0")));
    // By a variant that reads the whole text for each token.
    assert_done(&place.run(UPCYCLE, "--model dense --variant Smear --out smear"));
    assert_done(
        &place.run(GENERATE, "smear --active routed --prompt sort --max-tokens 6 --show-routing smear.html --stats"),
    );
}

/// A model whose tokens take single neurons has no groups to show.
#[test]
fn a_sparsified_model_writes_with_its_share() {
    let place = place();
    fs::write(place.path("run.toml"), "length = 16").unwrap();
    let run = "--model dense --data a=a.txt --data b=b.txt --active-share 0.5 --config run.toml --out run";
    assert_done(&place.run(SPARSIFY, run));
    let output = place.run(GENERATE, "run/tiny-onn --prompt sort --max-tokens 8 --stats");
    assert_done(&output);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let share: f64 = said.split("; ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().parse().unwrap();
    // At half of the operations, (p c + 2 s) / 3, a quarter to six tenths of the neurons are taken, as W_g reads all of x or a quarter.
    assert!((20.0..65.0).contains(&share), "{said}");
    let shown = place.run(GENERATE, "run/tiny-onn --prompt sort --show-routing p.html");
    assert_refused(&shown, &["`--show-routing`", "no groups"]);
}

#[rstest]
#[case::nothing("dense", &["--prompt", "--messages"])]
#[case::no_model("--prompt a", &["MODEL"])]
#[case::cold("dense --prompt a --temperature -1", &["`--temperature`", "-1", "above 0"])]
#[case::no_number("dense --prompt a --temperature nan", &["`--temperature`", "finite"])]
#[case::no_token("dense --prompt a --stop-id 280", &["`--stop-id`", "no token 280", "below 280"])]
#[case::no_mass("dense --prompt a --temperature 1 --top-p 0", &["`--top-p`", "above 0"])]
#[case::no_choice("dense --prompt a --temperature 1 --top-k 0", &["`--top-k`"])]
#[case::cut_of_nothing("dense --prompt a --top-k 3", &["`--temperature`", "give a temperature"])]
#[case::no_penalty("dense --prompt a --repetition-penalty 0", &["`--repetition-penalty`"])]
#[case::nothing_to_write("dense --prompt a --max-tokens 0", &["`--max-tokens`"])]
#[case::too_long("dense --prompt a --max-tokens 65", &["`--max-tokens`", "64 positions", "or fewer"])]
#[case::a_dense_path("dense --prompt a --show-routing p.html", &["`--show-routing`", "--active routed"])]
#[case::no_such_layer("sparse --active routed --prompt a --show-routing p.html --routing-layer 2", &["`--routing-layer`", "0 to 1"])]
#[case::nowhere("sparse --active routed --prompt a --show-routing no/p.html", &["no", "make it first"])]
#[case::a_system_alone("dense --prompt a --system b", &["`--system`", "--chat"])]
#[case::a_template_that_raises("dense --chat --prompt a --system b", &["chat_template.jinja", "no system"])]
#[case::no_file("dense --messages talk.json", &["talk.json"])]
fn what_cannot_be_gone_on_with_is_refused(#[case] arguments: &str, #[case] words: &[&str]) {
    let place = place();
    let before = place.files();
    assert_refused(&place.run(GENERATE, arguments), words);
    assert_eq!(place.files(), before);
}

#[test]
fn what_a_model_lacks_is_named() {
    let place = place();
    // An argument that is empty cannot be written between blanks.
    for (flag, word) in [("--prompt", "some text"), ("--stop", "one character")] {
        let output = place.command(GENERATE, "dense --prompt a").args([flag, ""]).output().unwrap();
        assert_refused(&output, &[&format!("`{flag}`"), word]);
    }
    let long = "1 ".repeat(100);
    assert_refused(
        &place.command(GENERATE, "dense").args(["--prompt", &long]).output().unwrap(),
        &["`--prompt`", "64 positions", "shorten"],
    );
    fs::write(place.path("talk.json"), "[]").unwrap();
    assert_refused(&place.run(GENERATE, "dense --messages talk.json"), &["talk.json", "role"]);
    fs::remove_file(place.path("dense/chat_template.jinja")).unwrap();
    assert_refused(&place.run(GENERATE, "dense --chat --prompt a"), &["dense", "no chat template", "without --chat"]);
    assert_done(&place.run(UPCYCLE, "--model dense --variant DeMix --out by-task"));
    assert_refused(&place.run(GENERATE, "by-task --active routed --prompt a"), &["`--active`", "--active all"]);
    fs::remove_file(place.path("dense/tokenizer.json")).unwrap();
    assert_refused(&place.run(GENERATE, "dense --prompt a"), &["tokenizer.json"]);
}
