//! The tasks that no pretraining holds: pure functions of their seeds, whose every line is as it is said to be.

use rstest::rstest;
use tinyonn::data::{
    Corpus, NO_DOCUMENT, NovelTask, SplitShares, Splits, TaskTokens, TokenSet, arithmetic, contradictions,
    invented_language, ledger, letter_sums, sorting,
};

use crate::models::message;

fn lines(task: &tinyonn::data::Task) -> Vec<String> {
    task.documents.iter().flat_map(|document| document.text.lines().map(str::to_owned)).collect()
}

#[rstest]
fn a_task_is_a_function_of_seed_and_size(
    #[values(NovelTask::LetterSums, NovelTask::Ledger, NovelTask::Contradictions, NovelTask::InventedLanguage)]
    task: NovelTask,
) {
    let [first, again, other] = [(7, 9_000), (7, 9_000), (8, 9_000)].map(|(seed, bytes)| task.generate(seed, bytes));
    assert_eq!(first, again);
    assert_ne!(first.documents, other.documents);
    let longer = task.generate(7, 18_000);
    assert_eq!(longer.documents[..first.documents.len()], first.documents);
    assert!((9_000..13_000).contains(&first.bytes()), "{}", first.bytes());
    // Held-out text is of the same kind and of other documents.
    let splits = Splits::new(&Corpus { tasks: vec![task.generate(7, 60_000)] }, SplitShares::default(), 7).unwrap();
    let train = &splits.train.tasks[0].documents;
    assert!(splits.test.tasks[0].documents.iter().all(|document| !train.contains(document)));
}

/// The digits of a seed's sums are found from its own lines: seven letters that add up.
#[rstest]
fn letter_sums_add_up(#[values(0, 1, 9)] seed: u64) {
    let lines = lines(&letter_sums(seed, 40_000));
    let mut letters: Vec<char> = lines.concat().chars().filter(char::is_ascii_lowercase).collect();
    letters.sort_unstable();
    letters.dedup();
    assert_eq!(letters.len(), 7);
    let holds = |digits: &[char]| {
        let value = |word: &str| {
            word.chars().rev().try_fold(0usize, |sum, c| Some(7 * sum + digits.iter().position(|d| *d == c)?))
        };
        lines.iter().take(60).all(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let (a, b, result) = (value(words[0]), value(words[1]), value(words[4]));
            let (Some(a), Some(b), Some(result)) = (a, b, result) else { return false };
            assert_eq!(words[3], "::");
            result == if words[2] == "&" { a + b } else { a * b }
        })
    };
    // One of the 5040 dealings of letters to digits, and only one, makes all lines true.
    let mut found = 0;
    permute(&mut letters.clone(), 0, &mut |digits| found += usize::from(holds(digits)));
    assert_eq!(found, 1);
}

fn permute(items: &mut [char], from: usize, each: &mut dyn FnMut(&[char])) {
    if from == items.len() {
        return each(items);
    }
    for at in from..items.len() {
        items.swap(from, at);
        permute(items, from + 1, each);
        items.swap(from, at);
    }
}

#[test]
fn ledgers_end_with_their_sums() {
    let (mut open, mut sum, mut count, mut closed) = (String::new(), 0i64, 0, 0);
    for line in lines(&ledger(3, 20_000)) {
        if let Some(number) = line.strip_prefix("<<") {
            (open, sum, count) = (number.to_owned(), 0, 0);
        } else if let Some(entry) = line.strip_prefix(" ~") {
            let words: Vec<&str> = entry.split(' ').collect();
            let [held, change, result] = [1, 2, 4].map(|at| words[at].parse::<i64>().unwrap());
            assert_eq!(held + change, result, "{line}");
            sum += result;
            count += 1;
        } else {
            assert_eq!(line, format!("{open}>> #{count} %{sum}"));
            closed += 1;
        }
    }
    assert!(closed > 100);
}

/// Each line says the opposite of what the generated tasks of the default text say.
#[test]
fn contradictions_contradict() {
    let truths: Vec<String> =
        [arithmetic(0, 200_000), sorting(0, 200_000)].iter().flat_map(lines_of_documents).collect();
    let (mut sums, mut lists) = (0, 0);
    for line in lines(&contradictions(5, 20_000)) {
        assert!(!truths.contains(&line) || !line.contains('='), "{line}");
        if let Some(rest) = line.strip_prefix("sort ") {
            let (given, sorted) = rest.split_once(" -> ").unwrap();
            let down = given.starts_with("down ");
            let numbers = |text: &str| -> Vec<u32> { text.split(' ').map(|word| word.parse().unwrap()).collect() };
            let mut expected = numbers(given.trim_start_matches("down "));
            expected.sort_unstable();
            if !down {
                expected.reverse();
            }
            assert_eq!(numbers(sorted), expected);
            lists += 1;
        } else {
            let words: Vec<&str> = line.split(' ').collect();
            let [a, b, result] = [0, 2, 4].map(|at| words[at].parse::<i64>().unwrap());
            let truth = match words[1] {
                "+" => a + b,
                "-" => a - b,
                _ => a * b,
            };
            assert_eq!(result, truth + 1);
            sums += 1;
        }
    }
    assert!(sums > 100 && lists > 50);
}

fn lines_of_documents(task: &tinyonn::data::Task) -> Vec<String> {
    lines(task)
}

#[test]
fn an_invented_sentence_has_its_parts_in_their_order() {
    for line in lines(&invented_language(2, 8_000)) {
        for sentence in line.trim_end_matches(" .").split(" . ") {
            let words: Vec<&str> =
                sentence.split(' ').filter(|word| word.contains('-') || !word.ends_with("an")).collect();
            let (tense, _) = words[0].split_once('-').unwrap();
            assert!(["ga", "na", "shu"].contains(&tense), "{sentence}");
            assert!(words.len() == 3 && words[1].ends_with("ek") && words[2].ends_with("uma"), "{sentence}");
        }
    }
}

fn set(name: &str, first: u32, count: u32) -> TokenSet {
    let task =
        TaskTokens { name: name.into(), tokens: (first..first + count).collect(), documents: vec![0; count as usize] };
    TokenSet { tasks: vec![task], documents: vec![format!("{name}/a")], eos: 0 }
}

/// Of every so many rows one is old; every new token but those at seams is still predicted, from what stood before it.
#[rstest]
#[case(100, 2, 10)]
#[case(400, 4, 5)]
#[case(90, 7, 2)]
fn one_row_in_so_many_is_old(#[case] count: u32, #[case] length: usize, #[case] one_in: usize) {
    let (new, old) = (set("new", 1000, count), set("old", 5000, 300));
    let mixed = new.with_replay(&old, one_in, length).unwrap();
    let task = &mixed.tasks[0];
    let rows: Vec<bool> = task.tokens.chunks(length).take(task.full_rows(length)).map(|row| row[0] >= 5000).collect();
    let replayed = rows.iter().filter(|old| **old).count();
    assert_eq!(rows.len() - replayed, new.tasks[0].full_rows(length));
    assert!(replayed > 0 && rows.chunks(one_in).all(|rows| rows.iter().filter(|old| **old).count() <= 1));
    assert_eq!(replayed, (rows.len() - replayed).div_ceil(one_in - 1) - 1);
    for (at, pair) in task.tokens.windows(2).enumerate() {
        let seam = pair[1] != pair[0] + 1;
        assert_eq!(task.documents[at + 1] == NO_DOCUMENT, seam, "{at}");
        let own = u32::from(task.tokens[at + 1] >= 5000);
        assert!(seam || task.documents[at + 1] == own);
    }
}

#[rstest]
#[case::nothing_new(1, 4, "none new")]
#[case::too_long(10, 400, "no row of 400 tokens")]
fn replay_that_cannot_be_is_refused(#[case] one_in: usize, #[case] length: usize, #[case] problem: &str) {
    let said = message(set("new", 0, 90).with_replay(&set("old", 500, 90), one_in, length));
    assert!(said.contains(problem), "{said}");
}

#[test]
fn sets_side_by_side_keep_their_documents() {
    let both = set("a", 0, 5).beside(&set("b", 10, 5));
    assert_eq!(both.documents, ["a/a", "b/a"]);
    assert_eq!((both.tasks[0].documents[0], both.tasks[1].documents[0]), (0, 1));
    assert_eq!(both.only(1).unwrap().tasks[0].name, "b");
    assert!(message(both.only(2)).contains("no task number 2"));
}
