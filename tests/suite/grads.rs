//! Where gradients go: the first of a step overwrites, later ones add, what is frozen forms none, and lines that learn join.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor, Var};
use rstest::rstest;
use tinyonn::decoder::{Arch, CausalLm, Learn, Pass};
use tinyonn::ops::{Grads, LearningNeurons, embedding, linear};

use crate::gradients::{inputs, relative_difference};
use crate::models::{CPU, Way, bits, config, hooked, ids, learnt, weights};

fn vars(dtype: DType, shapes: &[&[usize]]) -> Vec<Var> {
    inputs(1, shapes).iter().map(|x| Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap()).collect()
}

fn values(grads: &Grads, var: &Var) -> Vec<f64> {
    grads.get(var).unwrap().to_dtype(DType::F64).unwrap().flatten_all().unwrap().copy().unwrap().to_vec1().unwrap()
}

fn marks(values: &[u8]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

/// Weights of odd sizes side by side in one bucket, and one in another: each has its own values, of this step alone.
#[rstest]
fn the_first_gradient_of_a_step_overwrites_and_later_ones_add(
    #[values(DType::F32, DType::F64, DType::BF16)] dtype: DType,
) {
    let vars = vars(dtype, &[&[3, 5], &[7], &[1, 1], &[5, 3]]);
    let mut grads = Grads::new(vars.iter().zip([0, 0, 0, 1]).map(|(var, bucket)| (var.as_tensor(), bucket))).unwrap();
    let whole = |var: &Var, value: f64| Tensor::full(value as f32, var.shape(), &CPU).unwrap();
    for step in [1.0, 10.0] {
        assert!(vars.iter().all(|var| grads.get(var).is_none() && grads.learns(var)));
        for micro in [1.0, 2.0] {
            for (var, own) in vars.iter().zip([1.0, 3.0, 5.0, 7.0]) {
                grads.add_with(var, || Ok(whole(var, step * micro * own))).unwrap();
                // A step's earlier parts are in it, an earlier step's are not.
                let expected = step * own * if micro == 1.0 { 1.0 } else { 3.0 };
                assert!(values(&grads, var).iter().all(|x| *x == expected));
            }
        }
        let squares: f64 =
            vars.iter().zip([1.0, 3.0, 5.0, 7.0]).map(|(var, own)| var.elem_count() as f64 * own * own).sum();
        let norm = grads.norm(vars.iter().map(Var::as_tensor), &CPU).unwrap().to_vec1::<f64>().unwrap()[0];
        approx::assert_relative_eq!(norm, 3.0 * step * squares.sqrt(), max_relative = 1e-6);
        grads.begin();
    }
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    grads.add_with(&vars[0], || Ok(whole(&vars[0], 1.0))).unwrap();
    assert_eq!(grads.get(&vars[0]).unwrap().dtype(), wide);
    let refused = grads.add_with(&vars[0], || Ok(whole(&vars[1], 1.0))).unwrap_err().to_string();
    assert!(refused.contains("[7]") && refused.contains("[3, 5]"), "{refused}");
}

/// Products are written where they belong with the bits of candle's own; in two parts they differ from one long product by rounding alone.
#[rstest]
fn products_are_those_of_candle(#[values(1, 5, 700, 1500)] t: usize) {
    let xs: Vec<Tensor> = inputs(2, &[&[t, 9], &[t, 33]]).iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect();
    let vars = vars(DType::F32, &[&[4], &[9, 33]]);
    let mut grads = Grads::new(vars.iter().map(|var| (var.as_tensor(), 0))).unwrap();
    let expected = xs[0].t().unwrap().matmul(&xs[1]).unwrap();
    grads.add_product(&vars[1], &xs[0], &xs[1]).unwrap();
    assert_eq!(bits(&grads.get(&vars[1]).unwrap().copy().unwrap()), bits(&expected));
    // gemm blocks its inner dimension at 512: what is added over parts rounds otherwise, by 6e-8 a term of mixed sign.
    grads.begin();
    let first = t.div_ceil(3);
    for (from, rows) in [(0, first), (first, t - first)].into_iter().filter(|(_, rows)| *rows > 0) {
        let part = |x: &Tensor| x.narrow(0, from, rows).unwrap();
        grads.add_product(&vars[1], &part(&xs[0]), &part(&xs[1])).unwrap();
    }
    let difference = relative_difference(grads.get(&vars[1]).unwrap(), &expected);
    assert!(difference < 2e-6, "{difference}");
}

/// What has no place is not computed at all: of shapes that do not go together nobody hears.
#[test]
fn a_frozen_weight_costs_no_product() {
    let xs = inputs(3, &[&[3, 4], &[2, 4], &[3, 2], &[5, 5]]);
    let frozen = Var::from_tensor(&xs[1]).unwrap();
    let mut grads = Grads::none();
    grads.add_with(&frozen, || unreachable!("it is frozen")).unwrap();
    grads.add_product(&frozen, &xs[3], &xs[0]).unwrap();
    grads.restrict(&frozen, &marks(&[1]), 1).unwrap();
    grads.clear_others(&frozen, &marks(&[1])).unwrap();
    assert!(grads.get(&frozen).is_none() && grads.learning_rows(&frozen).is_none() && !grads.learns(&frozen));
    let dx = linear::backward(&xs[0], &frozen, None, &xs[2], true, &mut grads).unwrap();
    assert_eq!(dx.unwrap().dims(), [3, 4]);
    assert!(linear::backward(&xs[0], &frozen, None, &xs[2], false, &mut grads).unwrap().is_none());
    // A copy of a weight's values is not that weight.
    let grads = Grads::new([(frozen.as_tensor(), 0)]).unwrap();
    assert!(grads.learns(&frozen) && !grads.learns(&frozen.as_detached_tensor()));
}

/// A table that is read and is the head as well: both parts, in whichever order they come.
#[rstest]
fn a_table_collects_what_operations_add(#[values(DType::F32, DType::F64)] dtype: DType) {
    let xs: Vec<Tensor> = inputs(4, &[&[4, 3], &[4, 6], &[4, 3]]).iter().map(|x| x.to_dtype(dtype).unwrap()).collect();
    let table = vars(dtype, &[&[6, 3]]).remove(0);
    let ids = Tensor::new(&[5u32, 0, 5, 2], &CPU).unwrap();
    let gradient = |parts: &[bool]| {
        let mut grads = Grads::new([(table.as_tensor(), 0)]).unwrap();
        for head in parts {
            if *head {
                linear::backward(&xs[0], &table, None, &xs[1], false, &mut grads).unwrap();
            } else {
                embedding::backward(&ids, &table, &xs[2], &mut grads).unwrap();
            }
        }
        values(&grads, &table)
    };
    let (head, read) = (gradient(&[true]), gradient(&[false]));
    for both in [gradient(&[true, false]), gradient(&[false, true])] {
        for ((both, head), read) in both.iter().zip(&head).zip(&read) {
            approx::assert_relative_eq!(*both, head + read, max_relative = 1e-6, epsilon = 1e-6);
        }
    }
    assert_eq!(gradient(&[false, false]), read.iter().map(|x| 2.0 * x).collect::<Vec<_>>());
}

/// 300 terms of 1 at one id: in bf16 a sum would stall at 256, where adding 1 rounds to nothing.
#[test]
fn many_small_terms_of_a_table_in_bf16_are_summed_wider() {
    let table = vars(DType::BF16, &[&[2, 3]]).remove(0);
    let mut grads = Grads::in_dtype([(table.as_tensor(), 0)], DType::BF16).unwrap();
    let (ids, ones) =
        (Tensor::zeros(300, DType::U32, &CPU).unwrap(), Tensor::ones((300, 3), DType::BF16, &CPU).unwrap());
    embedding::backward(&ids, &table, &ones, &mut grads).unwrap();
    assert_eq!(values(&grads, &table), [300.0, 300.0, 300.0, 0.0, 0.0, 0.0]);
}

/// The embedding of a tied model learns as head and as embedding: the sum of what the two learn apart.
#[test]
fn a_tied_embedding_learns_twice() {
    let cfg = config(26, true);
    let untied = Arch { tie_word_embeddings: false, ..cfg.clone() };
    let (tied_store, mut store) = (weights(&cfg, DType::F32), weights(&cfg, DType::F32));
    let table = "model.embed_tokens.weight";
    store.insert("lm_head.weight".to_owned(), store.get(table).unwrap().as_detached_tensor().copy().unwrap()).unwrap();
    let ids = ids((2, 9));
    let gradient = |cfg: &Arch, store: &tinyonn::checkpoint::ParamStore, names: &[&str]| {
        let model = CausalLm::dense(cfg, &store.builder(DType::F32, |_| true)).unwrap();
        let found = learnt(&model, (store, &|_| true), (&ids, &ids), &Pass::all(), &Learn::default());
        let of = |name: &&str| found.grads.get(store.get(name).unwrap()).unwrap().copy().unwrap();
        names.iter().map(of).reduce(|a, b| (a + b).unwrap()).unwrap()
    };
    let (both, apart) = (gradient(&cfg, &tied_store, &[table]), gradient(&untied, &store, &[table, "lm_head.weight"]));
    let difference = relative_difference(&both, &apart);
    // One sum in another order.
    assert!(difference < 1e-6, "{difference}");
}

#[test]
fn rows_that_learn_join_over_micro_batches_and_begin_anew() {
    let var = vars(DType::F32, &[&[4, 3]]).remove(0);
    let mut grads = Grads::new([(var.as_tensor(), 0)]).unwrap();
    let rows = |grads: &Grads| grads.learning_rows(&var).map(|learn| learn.to_vec1::<u8>().unwrap());
    assert_eq!(rows(&grads), None);
    grads.restrict(&var, &marks(&[1, 0, 0, 1]), 2).unwrap();
    grads.restrict(&var, &marks(&[0, 0, 1, 1]), 2).unwrap();
    assert_eq!(rows(&grads), Some(vec![1, 0, 1, 1]));
    // Clearing takes what is not marked.
    let learn = marks(&[1, 0, 1, 1]);
    grads.clear_others(&var, &learn).unwrap();
    assert!(grads.get(&var).is_none(), "nothing was written");
    grads.add_with(&var, || var.ones_like()).unwrap();
    grads.clear_others(&var, &learn).unwrap();
    assert_eq!(values(&grads, &var), [1., 1., 1., 0., 0., 0., 1., 1., 1., 1., 1., 1.]);
    grads.begin();
    assert_eq!(rows(&grads), None);
    grads.restrict(&var, &marks(&[0]), 0).unwrap();
    grads.add_with(&var, || var.ones_like()).unwrap();
    grads.clear_others(&var, &marks(&[0])).unwrap();
    assert_eq!(values(&grads, &var), [0.0; 12]);
}

/// Parts that were formed apart add up like parts that were added in place, and so do the rows that learn.
#[test]
fn parts_that_were_formed_apart_are_added() {
    let vars = vars(DType::F32, &[&[2, 3], &[2, 3]]);
    let mut sum = Grads::new(vars.iter().map(|var| (var.as_tensor(), 0))).unwrap();
    let mut part = sum.like().unwrap();
    for (scale, learn) in [(1.0, [1u8, 0]), (2.0, [0, 0])] {
        part.begin();
        part.add_with(&vars[0], || vars[0].ones_like()? * scale).unwrap();
        part.restrict(&vars[0], &marks(&learn), learn.len()).unwrap();
        sum.add(&part).unwrap();
    }
    assert_eq!(values(&sum, &vars[0]), [3.0; 6]);
    assert_eq!(sum.learning_rows(&vars[0]).unwrap().to_vec1::<u8>().unwrap(), [1, 0]);
    assert!(sum.get(&vars[1]).is_none() && sum.learning_rows(&vars[1]).is_none());
}

/// An island of candle's tape adds to what operations have written.
#[test]
fn what_a_tape_finds_is_added() {
    let vars = vars(DType::F32, &[&[2, 2], &[2, 2]]);
    let mut grads = Grads::new([(vars[0].as_tensor(), 0)]).unwrap();
    let store = (vars[0].as_tensor() * 2.0).unwrap().add(&vars[1]).unwrap().sum_all().unwrap().backward().unwrap();
    grads.add_tape(&store).unwrap();
    grads.add_tape(&store).unwrap();
    assert_eq!(values(&grads, &vars[0]), [4.0; 4]);
    assert!(grads.get(&vars[1]).is_none());
}

/// Learners' columns and rows, none of them to all; the form for a GPU has places to spare, which hold nothing.
#[rstest]
#[case(&[])]
#[case(&[6])]
#[case(&[0, 2, 3])]
#[case(&[0, 1, 2, 3, 4, 5, 6])]
fn learners_are_picked_and_put_back(#[case] neurons: &[usize], #[values(0, 2, 20)] spare: usize) {
    let learn: Vec<u8> = (0..7).map(|i| u8::from(neurons.contains(&i))).collect();
    let x = inputs(5, &[&[4, 7]]).remove(0).to_dtype(DType::F32).unwrap();
    let expected: Vec<Vec<f32>> = x
        .to_vec2::<f32>()
        .unwrap()
        .into_iter()
        .map(|row| row.iter().zip(&learn).map(|(x, learn)| if *learn == 1 { *x } else { 0.0 }).collect())
        .collect();
    let most = neurons.len() + spare;
    for learners in [LearningNeurons::new(&marks(&learn), most), LearningNeurons::on_device(&marks(&learn), most)] {
        let learners = learners.unwrap();
        let columns = learners.columns(&x).unwrap();
        assert!((neurons.len()..=most).contains(&columns.dim(1).unwrap()));
        let back = learners.rows(&columns.t().unwrap().contiguous().unwrap()).unwrap().t().unwrap();
        assert_eq!(back.to_vec2::<f32>().unwrap(), expected);
    }
}

/// Places and neurons are those of main memory, however many neurons there are.
#[rstest]
fn learners_on_a_device_are_those_of_main_memory(#[values(1, 2, 99, 100, 12_288)] neurons: usize) {
    let learn: Vec<u8> = (0..neurons).map(|i| u8::from(i * i % 7 < 3)).collect();
    let most = learn.iter().map(|learn| *learn as usize).sum::<usize>();
    let x = Tensor::arange(0f32, (2 * neurons) as f32, &CPU).unwrap().reshape((2, neurons)).unwrap();
    for spare in [0, 1] {
        let [here, there] =
            [LearningNeurons::new, LearningNeurons::on_device].map(|new| new(&marks(&learn), most + spare).unwrap());
        let (own, columns) = (here.columns(&x).unwrap(), there.columns(&x).unwrap().narrow(1, 0, most).unwrap());
        assert_eq!(columns.to_vec2::<f32>().unwrap(), own.to_vec2::<f32>().unwrap());
        let back = |of: &LearningNeurons| {
            let rows = of.rows(&own.t().unwrap()).unwrap();
            rows.to_vec2::<f32>().unwrap()
        };
        assert_eq!(back(&here), back(&there));
    }
}

/// The backward ends at the lowest layer where something learns.
#[rstest]
#[case::nothing("no such parameter", 0)]
#[case::the_head_alone("lm_head", 0)]
#[case::the_last_norm("model.norm", 0)]
#[case::the_second_layer("model.layers.1.self_attn.q_proj", 1)]
#[case::the_first_layer("model.layers.0.mlp.down_proj", 2)]
#[case::the_embedding("model.embed_tokens", 2)]
fn a_backward_goes_no_further_than_it_must(#[case] learns: &str, #[case] layers: usize) {
    let cfg = config(26, false);
    let (store, calls, ids) = (weights(&cfg, DType::F32), Arc::new(AtomicUsize::new(0)), ids((2, 9)));
    let counted = calls.clone();
    let model = hooked(&cfg, &store.builder(DType::F32, |_| true), move |way| {
        counted.fetch_add(usize::from(way == Way::Backward), Ordering::Relaxed);
        Ok(())
    });
    let picked = |name: &str| name.starts_with(learns);
    let found = learnt(&model, (&store, &picked), (&ids, &ids), &Pass::all(), &Learn::default());
    assert_eq!(calls.load(Ordering::Relaxed), layers);
    assert!(store.iter().all(|(name, var)| found.grads.get(var).is_some() == picked(name)));
    // Nothing kept, nothing to go back by.
    let forward = model.forward(&ids, &ids, &Pass::all()).unwrap();
    let refused = model.backward(forward.saved, &forward.losses, &Learn::default(), &mut Grads::none());
    assert!(refused.unwrap_err().to_string().contains("Pass::kept()"));
}
