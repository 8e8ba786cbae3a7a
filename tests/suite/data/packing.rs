//! Rows: every token is predicted once, by the tokens before it, and training batches depend on seed and step alone.

use std::collections::BTreeMap;

use candle_core::Device;
use proptest::prelude::*;
use rstest::rstest;
use tinyonn::data::{Batch, NO_DOCUMENT, NO_TARGET, Sampler, TaskTokens, TokenSet};

/// Tokens that tell their task and place: `1000·task + position` (each task shorter than 1000), documents of `document`
/// tokens.
fn set(sizes: &[usize], document: usize) -> TokenSet {
    let mut set = TokenSet { tasks: Vec::new(), documents: Vec::new(), eos: 999_999 };
    for (task, size) in sizes.iter().enumerate() {
        let first = set.documents.len();
        set.documents.extend((0..size.div_ceil(document)).map(|index| format!("{task}/{index}")));
        set.tasks.push(TaskTokens {
            name: task.to_string(),
            tokens: (0..*size).map(|position| (1000 * task + position) as u32).collect(),
            documents: (0..*size).map(|position| (first + position / document) as u32).collect(),
        });
    }
    set
}

fn flat(batch: &Batch) -> (Vec<u32>, Vec<u32>) {
    let list = |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1().unwrap();
    (list(&batch.inputs), list(&batch.targets))
}

fn evaluation(set: &TokenSet, task: usize, length: usize, batch: usize) -> Vec<Batch> {
    set.batches_of_task(task, length, batch, &Device::Cpu).unwrap().collect::<Result<_, _>>().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn evaluation_predicts_every_token_but_the_first_once(
        sizes in prop::collection::vec(1usize..400, 1..4),
        length in 1usize..50,
        batch in 1usize..6,
        document in 1usize..40,
    ) {
        let set = set(&sizes, document);
        for (task, size) in sizes.iter().enumerate() {
            let batches = evaluation(&set, task, length, batch);
            let mut predicted = Vec::new();
            for one in &batches {
                let (inputs, targets) = flat(one);
                prop_assert_eq!(one.inputs.dims2().unwrap(), (one.tasks.len(), length));
                prop_assert_eq!(one.targets.dims2().unwrap(), (one.tasks.len(), length));
                prop_assert_eq!(one.documents.len(), inputs.len());
                prop_assert!(one.documents.iter().all(|document| (*document as usize) < set.documents.len()));
                prop_assert!(one.tasks.len() <= batch && one.tasks.iter().all(|row| *row == task as u32));
                for ((input, target), document) in inputs.iter().zip(&targets).zip(&one.documents) {
                    if *target == NO_TARGET {
                        prop_assert_eq!(*input, set.eos);
                        continue;
                    }
                    prop_assert_eq!(*target, input + 1);
                    let position = (*target as usize) - 1000 * task;
                    prop_assert_eq!(*document, set.tasks[task].documents[position]);
                    predicted.push(*target);
                }
            }
            prop_assert_eq!(&predicted, &set.tasks[task].tokens[1..]);
            // Nothing but the last row is padded.
            let rows: usize = batches.iter().map(|one| one.tasks.len()).sum();
            prop_assert_eq!(rows, set.rows(length)[task]);
            prop_assert_eq!(rows, (size - 1).div_ceil(length));
            prop_assert!(batches.iter().rev().skip(1).all(|one| one.tasks.len() == batch));
        }
    }

    #[test]
    fn training_gives_equal_shares_and_each_row_once_an_epoch(
        sizes in prop::collection::vec(100usize..400, 1..5),
        length in 1usize..40,
        batch in 1usize..7,
        seed in any::<u64>(),
    ) {
        let set = set(&sizes, 30);
        let sampler = Sampler::new(&set, length, batch, seed, &Device::Cpu).unwrap();
        let mut visits: Vec<Vec<u32>> = vec![Vec::new(); sizes.len()];
        for step in 0..60 {
            let one = sampler.batch_at(step).unwrap();
            let (inputs, targets) = flat(&one);
            prop_assert!(inputs.iter().zip(&targets).all(|(input, target)| *target == input + 1));
            for (row, task) in one.tasks.iter().enumerate() {
                visits[*task as usize].push((inputs[row * length] - 1000 * task) / length as u32);
            }
        }
        let counts: Vec<usize> = visits.iter().map(Vec::len).collect();
        prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{:?}", counts);
        for (task, visits) in visits.iter().enumerate() {
            let rows = set.tasks[task].full_rows(length);
            for epoch in visits.chunks(rows) {
                let mut times: BTreeMap<u32, usize> = BTreeMap::new();
                for row in epoch {
                    *times.entry(*row).or_default() += 1;
                }
                prop_assert!(times.iter().all(|(row, times)| *times == 1 && (*row as usize) < rows));
            }
        }
    }
}

#[test]
fn a_batch_depends_on_seed_and_step_alone() {
    let set = set(&[900, 700], 50);
    let sampler = |seed: u64| Sampler::new(&set, 8, 4, seed, &Device::Cpu).unwrap();
    let late = flat(&sampler(3).batch_at(1_000_000).unwrap());
    let running = sampler(3);
    for step in [5, 0, 7] {
        running.batch_at(step).unwrap();
    }
    assert_eq!(late, flat(&running.batch_at(1_000_000).unwrap()));
    assert_ne!(late, flat(&sampler(4).batch_at(1_000_000).unwrap()));
    assert_ne!(late, flat(&running.batch_at(999_999).unwrap()));
}

#[test]
fn epochs_are_shuffled_anew() {
    let set = set(&[801], 50);
    let sampler = Sampler::new(&set, 8, 100, 0, &Device::Cpu).unwrap();
    let epochs: Vec<_> = (0..3).map(|step| flat(&sampler.batch_at(step).unwrap()).0).collect();
    assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2] && epochs[0] != epochs[2]);
    assert!(epochs.iter().all(|epoch| *epoch != set.tasks[0].tokens[..800]));
}

#[test]
fn rows_are_dealt_to_the_tasks_in_turn() {
    let set = set(&[200, 300, 400], 50);
    let sampler = Sampler::new(&set, 8, 2, 0, &Device::Cpu).unwrap();
    let tasks: Vec<Vec<u32>> = (0..3).map(|step| sampler.batch_at(step).unwrap().tasks).collect();
    assert_eq!(tasks, [[0, 1], [2, 0], [1, 2]]);

    // The order within a task is its own: row n of task 2 is the same row whether or not others are dealt between.
    let alone = TokenSet { tasks: vec![set.tasks[2].clone()], ..set.clone() };
    let alone = Sampler::new(&alone, 8, 2, 0, &Device::Cpu).unwrap();
    let mixed = flat(&sampler.batch_at(1).unwrap()).0[..8].to_vec();
    assert_eq!(flat(&alone.batch_at(0).unwrap()).0[..8], mixed);
}

#[rstest]
#[case::no_length(0, 1, "`length`: 0 makes empty batches")]
#[case::no_batch(1, 0, "`batch`: 0 makes empty batches")]
#[case::too_long(40, 1, "task `1` has 30 tokens, too few for a row of 40 and its target; use 29 or less")]
fn impossible_shapes_are_refused(#[case] length: usize, #[case] batch: usize, #[case] problem: &str) {
    let message = Sampler::new(&set(&[90, 30], 50), length, batch, 0, &Device::Cpu).unwrap_err().to_string();
    assert!(message.contains(problem), "{message}");
}

#[test]
fn evaluation_refuses_what_is_not_there() {
    let set = set(&[9], 5);
    for (task, length, batch, problem) in [(1, 4, 1, "no task number 1"), (0, 0, 1, "`length`"), (0, 4, 0, "`batch`")] {
        let Err(error) = set.batches_of_task(task, length, batch, &Device::Cpu).map(|_| ()) else { panic!() };
        assert!(error.to_string().contains(problem), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn beginnings_are_the_longest_of_every_document_for_which_there_is_room(
        sizes in prop::collection::vec(1usize..400, 1..4),
        document in 1usize..60,
        most in 1usize..300,
    ) {
        let whole = set(&sizes, document);
        let mut cut = whole.clone();
        cut.beginnings(most);
        for (task, (cut, whole)) in cut.tasks.iter().zip(&whole.tasks).enumerate() {
            if whole.tokens.len() <= most {
                prop_assert_eq!(cut, whole);
                continue;
            }
            prop_assert!(cut.tokens.len() <= most);
            prop_assert_eq!(cut.tokens.len(), cut.documents.len());
            prop_assert_eq!(cut.tokens.iter().filter(|token| **token == 999_999).count(), cut.documents.iter().filter(|of| **of == NO_DOCUMENT).count());
            let documents = sizes[task].div_ceil(document);
            // A token of the set tells its place: every document's tokens are its first ones.
            let kept: Vec<usize> = (0..documents)
                .map(|at| {
                    let first = 1000 * task + at * document;
                    let own: Vec<usize> = cut.tokens.iter().map(|token| *token as usize)
                        .filter(|token| (first..first + document).contains(token)).collect();
                    assert_eq!(own, (first..first + own.len()).collect::<Vec<_>>());
                    own.len()
                })
                .collect();
            if 2 * documents <= most {
                let longest = *kept.iter().max().unwrap();
                let length = |at: usize| document.min(sizes[task] - at * document);
                prop_assert!((0..documents).all(|at| kept[at] == longest.min(length(at))), "{kept:?}");
                // Behind every document that is cut, but the last, an EOS of no document.
                let between = |each: usize| (0..documents - 1).filter(|at| length(*at) > each).count();
                let of = |each: usize| (0..documents).map(|at| each.min(length(at))).sum::<usize>() + between(each);
                prop_assert_eq!(cut.tokens.len(), of(longest));
                prop_assert!(of(longest + 1) > most, "there was room for {} of {most}", of(longest + 1));
                for at in (1..cut.tokens.len()).filter(|at| cut.documents[*at] == NO_DOCUMENT) {
                    prop_assert!(cut.documents[at - 1] != cut.documents[at + 1]);
                }
            }
        }
    }
}

#[test]
fn a_cut_twice_is_one_cut() {
    for (most, less) in [(90, 50), (200, 31), (33, 12)] {
        let (mut twice, mut once) = (set(&[120, 70], 25), set(&[120, 70], 25));
        twice.beginnings(most);
        twice.beginnings(less);
        once.beginnings(less);
        assert_eq!(twice, once, "{most} {less}");
    }
}

#[test]
fn between_cut_documents_stands_an_end_that_is_read_and_never_predicted() {
    let mut set = set(&[60], 20);
    set.beginnings(17);
    let [batch] = evaluation(&set, 0, 16, 4).try_into().unwrap();
    let (inputs, targets) = flat(&batch);
    assert_eq!(inputs, [0, 1, 2, 3, 4, 999_999, 20, 21, 22, 23, 24, 999_999, 40, 41, 42, 43]);
    let end = NO_TARGET;
    assert_eq!(targets, [1, 2, 3, 4, end, 20, 21, 22, 23, 24, end, 40, 41, 42, 43, 44]);
    assert_eq!(batch.documents, [0, 0, 0, 0, NO_DOCUMENT, 1, 1, 1, 1, 1, NO_DOCUMENT, 2, 2, 2, 2, 2]);
}
