//! The store of parameters, the builders over it, and fresh values.

use super::*;

#[test]
fn the_store_lists_in_order_and_counts_weights_only() {
    let mut store = small_store();
    assert_eq!(store.names().collect::<Vec<_>>(), ["a", "b", "b.expert"]);
    assert_eq!((store.len(), store.parameters()), (3, 4));
    let all: Vec<_> = store.trainable(|_| true).into_iter().map(|(name, _)| name).collect();
    assert_eq!(all, ["a", "b"], "integers never train");
    assert!(message(store.insert("a", Tensor::zeros(1, DType::F32, &CPU).unwrap())).contains("`a`"));
    assert!(store.remove("a").is_some());
    assert!(store.get("a").is_none());
}

#[test]
fn set_reaches_the_models_and_refuses_what_does_not_fit() {
    let store = small_store();
    let lent = store.builder(DType::F32, |_| false).get(2, "a").unwrap();
    store.set("a", &Tensor::new(&[7f32, 8.0], &CPU).unwrap()).unwrap();
    assert_eq!(values(&lent), [7.0, 8.0]);
    let wrong = [
        ("a", Tensor::zeros(3, DType::F32, &CPU)),
        ("a", Tensor::zeros(2, DType::BF16, &CPU)),
        ("c", Tensor::zeros(2, DType::F32, &CPU)),
        ("a", Ok(lent.clone())),
    ];
    for (name, value) in wrong {
        let error = message(store.set(name, &value.unwrap()));
        assert!(error.contains(&format!("`{name}`")), "{error}");
    }
    assert_eq!(values(&lent), [7.0, 8.0]);
}

#[test]
fn a_store_shares_nothing_with_what_it_was_made_from_nor_with_its_copy() {
    let outside = Var::new(&[1f32], &CPU).unwrap();
    let mut store = ParamStore::new(&CPU);
    store.insert("w", outside.as_tensor().clone()).unwrap();
    let copy = store.deep_copy().unwrap();
    store.set("w", &Tensor::new(&[2f32], &CPU).unwrap()).unwrap();
    let seen = [outside.as_tensor(), store.get("w").unwrap(), copy.get("w").unwrap()].map(|t| values(t)[0]);
    assert_eq!(seen.map(f32::to_bits), [1f32, 2.0, 1.0].map(f32::to_bits));
}

#[rstest]
fn gradients_reach_trainable_vars_and_no_frozen_one(#[values(DType::F32, DType::BF16)] compute: DType) {
    let store = small_store();
    let work = store.work_weights(compute, |name| (name == "b" || name == "b.expert").then_some(compute)).unwrap();
    let vb = work.builder();
    let (a, b) = (vb.get(2, "a").unwrap(), vb.get((2, 1), "b").unwrap());
    let expert = vb.get_with_hints_dtype(2, "b.expert", Init::default(), DType::U32).unwrap();
    assert_eq!(expert.to_vec1::<u32>().unwrap(), [0, 1]);
    assert_eq!((a.dtype(), b.dtype()), (compute, compute));
    let loss = a.unsqueeze(0).unwrap().matmul(&b.index_select(&expert, 0).unwrap()).unwrap().sum_all().unwrap();
    let gradients = loss.backward().unwrap();
    let (var, master) = work.get("b").unwrap();
    let gradient = gradients.get(var).expect("a parameter that learns has a gradient");
    assert_eq!((gradient.dtype(), values(gradient)), (compute, vec![1.0, 2.0]));
    // Where the types are one, the work weight is the stored one; elsewhere that is its master.
    let own = if compute == DType::F32 { var } else { master.unwrap() };
    assert_eq!((own.id(), master.is_none()), (store.get("b").unwrap().id(), compute == DType::F32));
    assert!(work.get("a").is_none() && work.get("b.expert").is_none());
    for frozen in ["a", "b.expert"] {
        assert!(gradients.get(store.get(frozen).unwrap()).is_none(), "{frozen}");
    }
    assert!(!a.track_op(), "a frozen value starts no tape");
}

#[test]
fn builders_name_what_is_missing_or_misshapen() {
    let store = small_store();
    let vb = store.builder(DType::F32, |_| true).pp("b");
    assert!(vb.contains_tensor("expert") && !vb.contains_tensor("bias"));
    let missing = vb.get(2, "bias").unwrap_err().to_string();
    assert!(missing.contains("`b.bias`") && missing.contains("not in the store"), "{missing}");
    let shape = store.builder(DType::F32, |_| true).get((1, 2), "b").unwrap_err().to_string();
    assert!(shape.contains("`b`") && shape.contains("[2, 1]") && shape.contains("[1, 2]"), "{shape}");
}

fn initialised(seed: u64, names: &[&str]) -> ParamStore {
    ParamStore::initialise(&CPU, seed, |vb| {
        for name in names {
            vb.get_with_hints((50, 40), name, Init::Randn { mean: 1.0, stdev: 0.5 })?;
        }
        Ok(())
    })
    .unwrap()
}

#[test]
fn fresh_values_depend_on_seed_and_name_alone() {
    let (one, two, other) = (initialised(3, &["a", "b"]), initialised(3, &["c", "b", "a"]), initialised(4, &["a"]));
    let bits = |store: &ParamStore, name: &str| -> Vec<u32> {
        values(store.get(name).unwrap()).into_iter().map(f32::to_bits).collect()
    };
    assert_eq!(bits(&one, "a"), bits(&two, "a"));
    assert_eq!(bits(&one, "b"), bits(&two, "b"));
    assert_ne!(bits(&one, "a"), bits(&one, "b"));
    assert_ne!(bits(&one, "a"), bits(&other, "a"));
}

#[rstest]
#[case(Init::Const(0.25), 0.25, 0.0)]
#[case(Init::Randn { mean: -2.0, stdev: 3.0 }, -2.0, 3.0)]
#[case(Init::Uniform { lo: -1.0, up: 5.0 }, 2.0, 6.0 / 12f64.sqrt())]
#[case(candle_nn::init::DEFAULT_KAIMING_UNIFORM, 0.0, (2.0f64 / 150.0).sqrt())]
#[case(candle_nn::init::DEFAULT_KAIMING_NORMAL, 0.0, (2.0f64 / 150.0).sqrt())]
fn fresh_values_have_the_moments_asked_for(#[case] init: Init, #[case] mean: f64, #[case] stdev: f64) {
    let store = ParamStore::initialise(&CPU, 0, |vb| {
        vb.get_with_hints((200, 150), "w", init)?;
        Ok(())
    })
    .unwrap();
    let values: Vec<f64> = values(store.get("w").unwrap()).into_iter().map(f64::from).collect();
    let n = values.len() as f64;
    let found = values.iter().sum::<f64>() / n;
    let spread = (values.iter().map(|x| (x - found).powi(2)).sum::<f64>() / n).sqrt();
    assert!((found - mean).abs() <= 0.03 * stdev, "mean {found}, expected {mean}");
    assert!((spread - stdev).abs() <= 0.02 * stdev, "deviation {spread}, expected {stdev}");
}

#[test]
fn a_fresh_store_feeds_its_own_constructor() {
    let construct = |vb: candle_nn::VarBuilder| candle_nn::linear(5, 3, vb.pp("head"));
    let mut made = None;
    let store = ParamStore::initialise(&CPU, 1, |vb| {
        made = Some(construct(vb)?);
        Ok(())
    })
    .unwrap();
    let again = construct(store.builder(DType::F32, |_| false)).unwrap();
    assert_eq!(values(made.unwrap().weight()), values(again.weight()));
}

#[test]
fn a_constructor_that_contradicts_itself_is_refused() {
    let twice = ParamStore::initialise(&CPU, 0, |vb| {
        vb.get((2, 3), "w")?;
        vb.get((3, 2), "w")?;
        Ok(())
    });
    assert!(message(twice).contains("`w`"));
    let unseen = ParamStore::initialise(&CPU, 0, |vb| {
        vb.get_unchecked("w")?;
        Ok(())
    });
    assert!(message(unseen).contains("`w`"));
    let random_integers = ParamStore::initialise(&CPU, 0, |vb| {
        vb.get_with_hints_dtype(2, "ids", Init::Uniform { lo: 0.0, up: 9.0 }, DType::U32)?;
        Ok(())
    });
    assert!(message(random_integers).contains("`ids`"));
    let counted = ParamStore::initialise(&CPU, 0, |vb| {
        vb.get_with_hints_dtype(2, "ids", Init::Const(4.0), DType::U32)?;
        Ok(())
    });
    assert_eq!(counted.unwrap().get("ids").unwrap().to_vec1::<u32>().unwrap(), [4, 4]);
}
