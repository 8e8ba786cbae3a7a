//! Forms that a GPU has of an MLP's experts, and of what imaging sums over a pass, against their plain form in f64, as `kernels` does for other operations.

use candle_core::{DType, Tensor};
use rstest::rstest;
use tinyonn::Result;
use tinyonn::ops::{
    ExpertNeurons, Grads, Imaging, Learners, LearningNeurons, Log1pScale, MlpBackward, MlpGate, MlpWeights, Silu,
    SlicedMlp, dispatch_mlp, glu_mlp, image_moments, min_k, segment_means,
};

use crate::gradients::inputs;
use crate::kernels::holds;
use crate::models::CPU;

/// The expert of each neuron, those of an expert far apart.
fn owners(widths: &[usize]) -> Vec<u32> {
    let i = widths.iter().sum::<usize>();
    let sorted = widths.iter().enumerate().flat_map(|(expert, width)| std::iter::repeat_n(expert as u32, *width));
    let sorted: Vec<u32> = sorted.collect();
    // A step that passes by every neuron.
    let apart = (7..7 + i).find(|step| !(2..=*step).any(|by| step % by == 0 && i.is_multiple_of(by))).unwrap();
    (0..i).map(|at| sorted[at * apart % i]).collect()
}

/// Experts of uneven widths and tokens that take none of them, some, or as many as there is room for: rows, tiles and slabs that are not full.
#[rstest]
#[case::few_tokens(3, 64, &[2, 1], 1)]
#[case::one_row_of_tiles(130, 128, &[5, 64, 70, 1, 130], 3)]
#[case::half_a_block_of_columns(300, 192, &[50; 20], 7)]
#[case::more_than_a_word_of_experts(90, 64, &[3; 70], 10)]
#[case::width_that_no_kernel_takes(40, 48, &[7, 9, 3], 2)]
#[case::few_enough_for_rows(70, 64, &[60; 40], 2)]
#[case::half_of_wide_experts(300, 128, &[250, 256, 200, 129], 2)]
#[case::wide_experts_by_rows(140, 64, &[800; 4], 1)]
#[case::more_rows_than_a_tile(700, 320, &[30, 61, 64], 2)]
#[case::one_without_a_neuron(150, 64, &[70, 0, 129, 40], 2)]
#[case::some_without_a_row(12, 64, &[40; 20], 1)]
#[case::hidden_width_between_tiles(60, 72, &[40, 30], 1)]
fn tokens_go_to_their_own_experts(#[case] t: usize, #[case] d: usize, #[case] widths: &[usize], #[case] most: usize) {
    let (experts, i) = (widths.len(), widths.iter().sum::<usize>());
    let owners = owners(widths);
    let open = |token: usize, expert: usize| (expert + 3 * token) % experts < token % (most + 1);
    let marks = (0..t * experts).map(|at| f32::from(u8::from(open(at / experts, at % experts)))).collect();
    let marks = Tensor::from_vec::<_, f32>(marks, (t, experts), &CPU).unwrap();
    let gates = |xs: &[Tensor]| -> Result<(Tensor, Tensor)> {
        let marks = marks.to_device(xs[4].device())?.to_dtype(xs[4].dtype())?;
        Ok(((&xs[4] * marks)?, Tensor::new(owners.as_slice(), xs[4].device())?))
    };
    holds(&inputs(12, &[&[t, d], &[i, d], &[i, d], &[i, d], &[t, experts], &[t, d]]), |xs| {
        #[cfg(feature = "cuda")]
        if xs[0].device().is_cuda() {
            use tinyonn::ops::{grouped_mlp, grouped_mlp::Choice};
            let weights = MlpWeights { gate: &xs[1], up: &xs[2], down: &xs[3], activation: &Silu };
            let taken = grouped_mlp::takes(&xs[0], weights)?;
            assert_eq!(taken, xs[0].dtype() == DType::BF16 && d.is_multiple_of(64));
            if taken {
                let (gate_tn, neuron_expert) = gates(xs)?;
                let gate = MlpGate { gate_tn: &gate_tn, neuron_expert: &neuron_expert };
                let neurons = ExpertNeurons::new(&owners, experts)?.on_device(xs[0].device())?;
                let passed = grouped_mlp::forward(&xs[0], weights, gate, Choice { neurons: &neurons, most })?;
                return through(passed, weights, &xs[5]);
            }
        }
        // In main memory it is a form of f32 and f64; bf16 there is what a GPU is compared with.
        let dtype = if xs[0].dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let xs: Vec<Tensor> = xs.iter().map(|x| x.to_device(&CPU)?.to_dtype(dtype)).collect::<Result<_, _>>()?;
        let (gate_tn, neuron_expert) = gates(&xs)?;
        let gate = MlpGate { gate_tn: &gate_tn, neuron_expert: &neuron_expert };
        let weights = MlpWeights { gate: &xs[1], up: &xs[2], down: &xs[3], activation: &Silu };
        through(dispatch_mlp::forward(&xs[0], weights, gate)?, weights, &xs[5])
    });
}

/// A pass makes room for `most` experts of a token before it looks at its gates: of more open ones the first count.
#[cfg(feature = "cuda")]
#[rstest]
fn of_more_open_gates_the_first_count(#[values(1, 3)] most: usize) {
    use crate::gradients::devices;
    use crate::models::bits;
    use tinyonn::ops::{grouped_mlp, grouped_mlp::Choice};

    let (t, d, widths) = (140, 64, [9, 70, 3, 1, 20]);
    let (experts, i, owners) = (widths.len(), widths.iter().sum::<usize>(), owners(&widths));
    let xs = inputs(17, &[&[t, d], &[i, d], &[i, d], &[i, d], &[t, experts], &[t, d]]);
    for device in devices().iter().filter(|device| device.is_cuda()) {
        let on = |x: &Tensor| x.to_dtype(DType::BF16).unwrap().to_device(device).unwrap();
        let xs: Vec<Tensor> = xs.iter().map(on).collect();
        let first: Vec<f32> = (0..t * experts).map(|at| f32::from(u8::from(at % experts < most))).collect();
        let first_tn = on(&Tensor::from_vec(first, (t, experts), &CPU).unwrap());
        let weights = MlpWeights { gate: &xs[1], up: &xs[2], down: &xs[3], activation: &Silu };
        let neuron_expert = Tensor::new(owners.as_slice(), device).unwrap();
        let neurons = ExpertNeurons::new(&owners, experts).unwrap().on_device(device).unwrap();
        let run = |gate_tn: &Tensor| {
            let gate = MlpGate { gate_tn, neuron_expert: &neuron_expert };
            let passed = grouped_mlp::forward(&xs[0], weights, gate, Choice { neurons: &neurons, most }).unwrap();
            gradients(&passed, weights, &xs[5]).unwrap()
        };
        let found = run(&xs[4]);
        let expected = run(&(&xs[4] * first_tn).unwrap());
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(bits(&found.to_device(&CPU).unwrap()), bits(&expected.to_device(&CPU).unwrap()));
        }
    }
}

/// All neurons are computed, each under the gate of its expert.
#[rstest]
#[case::one_expert(3, 8, &[5])]
#[case::uneven(17, 16, &[3, 40, 1])]
#[case::more_experts_than_warps(33, 24, &[4; 31])]
#[case::wide(9, 16, &[700, 600])]
fn neurons_stand_under_their_experts_gates(#[case] t: usize, #[case] d: usize, #[case] widths: &[usize]) {
    let (experts, i, owners) = (widths.len(), widths.iter().sum::<usize>(), owners(widths));
    holds(&inputs(13, &[&[t, d], &[i, d], &[i, d], &[i, d], &[t, experts], &[t, d]]), |xs| {
        let weights = MlpWeights { gate: &xs[1], up: &xs[2], down: &xs[3], activation: &Silu };
        let neuron_expert = Tensor::new(owners.as_slice(), xs[0].device())?;
        let gate = MlpGate { gate_tn: &xs[4], neuron_expert: &neuron_expert };
        #[cfg(feature = "cuda")]
        if xs[0].device().is_cuda() {
            use tinyonn::ops::gated_mlp;
            assert!(gated_mlp::takes(&xs[0], weights, &xs[4])?);
            let neurons = ExpertNeurons::new(&owners, experts)?.on_device(xs[0].device())?;
            return through(gated_mlp::forward(&xs[0], weights, gate, &neurons)?, weights, &xs[5]);
        }
        through(glu_mlp::forward(&xs[0], weights, Some(gate))?, weights, &xs[5])
    });
}

/// Some runs of tokens take all experts, others those of their decision.
#[rstest]
#[case::open_first(&[(true, 20), (false, 40), (false, 9)])]
#[case::by_turns(&[(true, 5), (false, 70), (true, 1), (false, 1), (true, 64)])]
#[case::open_last(&[(false, 130), (true, 3)])]
fn segments_take_their_decisions_experts(#[case] runs: &[(bool, usize)]) {
    let (d, widths, most) = (64, [30; 20], 3);
    let (experts, i, owners) = (widths.len(), widths.iter().sum::<usize>(), owners(&widths));
    let t = runs.iter().map(|(_, length)| length).sum::<usize>();
    let kinds: Vec<(usize, bool)> =
        runs.iter().enumerate().flat_map(|(run, (open, length))| std::iter::repeat_n((run, *open), *length)).collect();
    // 1 where an expert was decided for, and all ones where nothing was decided.
    let decided = |token: usize, expert: usize| !kinds[token].1 && (expert + 5 * kinds[token].0) % experts < most;
    let marks = |of: &dyn Fn(usize, usize) -> bool, like: &Tensor| {
        let marks: Vec<f32> = (0..t * experts).map(|at| f32::from(u8::from(of(at / experts, at % experts)))).collect();
        Tensor::from_vec(marks, (t, experts), like.device())?.to_dtype(like.dtype())
    };
    holds(&inputs(14, &[&[t, d], &[i, d], &[i, d], &[i, d], &[t, experts], &[t, d]]), |xs| {
        let weights = MlpWeights { gate: &xs[1], up: &xs[2], down: &xs[3], activation: &Silu };
        let neuron_expert = Tensor::new(owners.as_slice(), xs[0].device())?;
        let (taken_tn, open_tn) = (marks(&decided, &xs[4])?, marks(&|token, _| kinds[token].1, &xs[4])?);
        let gate_tn = ((&xs[4] * &taken_tn)? + &open_tn)?;
        let gate = MlpGate { gate_tn: &gate_tn, neuron_expert: &neuron_expert };
        let only_decided = |mut found: Vec<Tensor>| {
            found[2] = (&found[2] * &taken_tn)?;
            Ok(found)
        };
        #[cfg(feature = "cuda")]
        if xs[0].device().is_cuda() && xs[0].dtype() == DType::BF16 {
            use tinyonn::ops::{RowRun, grouped_mlp::Choice, segment_mlp};
            let neurons = ExpertNeurons::new(&owners, experts)?.on_device(xs[0].device())?;
            let (choice, mut next) = (Choice { neurons: &neurons, most }, 0);
            let row_runs = runs.iter().enumerate().map(|(decision, (open, length))| {
                next += length;
                RowRun { rows: next - length..next, decision: (!open).then_some(decision) }
            });
            let row_runs: Vec<RowRun> = row_runs.collect();
            assert!(segment_mlp::pays(&row_runs, choice)?);
            let passed = segment_mlp::forward(&xs[0], weights, gate, choice, &row_runs)?;
            return only_decided(gradients(&passed, weights, &xs[5])?);
        }
        only_decided(gradients(&glu_mlp::forward(&xs[0], weights, Some(gate))?, weights, &xs[5])?)
    });
}

/// Segments that end before their sequences do, widths that divide nothing.
#[rstest]
fn segments_have_their_means(
    #[values((1, 3, 1, 1, 2), (2, 40, 3, 12, 33), (3, 300, 2, 150, 520))] shape: (usize, usize, usize, usize, usize),
) {
    let (b, t, count, tokens, d) = shape;
    let segments = segment_means::Segments { count, tokens };
    holds(&inputs(16, &[&[b, t, d], &[b * count, d]]), |xs| {
        let dmeans = xs[1].to_dtype(DType::F32)?;
        let dx = segment_means::backward(&dmeans, segments, (b, t, d), xs[0].dtype())?;
        Ok(vec![segment_means::forward(&xs[0], segments)?, dx])
    });
}

/// Some tokens do not count, an expert has one neuron, widths divide nothing; gates or none.
#[rstest]
fn what_imaging_sums_is_its_formula(
    #[values((1, 3, &[2, 1][..]), (130, 24, &[40, 1, 7][..]), (300, 10, &[9, 500, 12][..]))] (t, d, widths): (
        usize,
        usize,
        &[usize],
    ),
    #[values(false, true)] gated: bool,
) {
    let (experts, i) = (ExpertNeurons::new(&owners(widths), widths.len()).unwrap(), widths.iter().sum::<usize>());
    let counted: Vec<u8> = (0..t).map(|token| u8::from(token % 5 != 3)).collect();
    let shapes: &[&[usize]] = &[&[t, d], &[t, i], &[t, i], &[t, d], &[t, i], &[t, i], &[t, i]];
    holds(&inputs(15, shapes), |xs| {
        let seen = MlpBackward {
            x_td: &xs[0],
            h_ti: &xs[1],
            gate_ti: gated.then_some(&xs[2]),
            delta_y_td: &xs[3],
            delta_h_ti: &xs[4],
            delta_g_ti: &xs[5],
            delta_u_ti: &xs[6],
            input_matrices: None,
            reads_a_part: false,
        };
        let counted_t = Tensor::new(counted.as_slice(), xs[0].device())?;
        let scale = Some(Log1pScale { activation: 0.7, surprise: 1.9 });
        let mut found = vec![min_k::surprise_squares(&seen, Some(&counted_t))?, min_k::surprise_squares(&seen, None)?];
        let imaged = [Imaging::default(), Imaging { experts: Some(&experts), scale, ..Imaging::default() }];
        for imaging in &imaged {
            let sums = image_moments(&seen, &counted_t, imaging)?;
            let all = [Some(sums.neurons), sums.experts, sums.log1p_neurons, sums.log1p_experts].into_iter().flatten();
            for sums in all {
                for row in 0..sums.dim(0)? {
                    found.push(sums.get(row)?);
                }
            }
        }
        Ok(found)
    });
}

/// [`gradients`], and what imaging sees.
fn through<S: SlicedMlp>(passed: (Tensor, S), weights: MlpWeights<'_>, dy: &Tensor) -> Result<Vec<Tensor>> {
    let mut found = gradients(&passed, weights, dy)?;
    let saved = passed.1;
    saved.seen(&saved.deltas(dy)?, |seen| {
        found.extend([seen.h_ti, seen.delta_h_ti, seen.delta_g_ti, seen.delta_u_ti].map(Clone::clone));
        Ok(())
    })?;
    Ok(found)
}

/// y, dx and dgate, and the gradients of the weights of one micro-batch and of two, gradients in f32 and in the weights' type.
fn gradients<S: SlicedMlp>((y, saved): &(Tensor, S), weights: MlpWeights<'_>, dy: &Tensor) -> Result<Vec<Tensor>> {
    let deltas = saved.deltas(dy)?;
    let mut found = vec![y.clone(), saved.input_gradient(&deltas)?, saved.gate_gradient(&deltas)?.unwrap()];
    for dtype in [DType::F32, weights.gate.dtype()] {
        let all = [weights.gate, weights.up, weights.down];
        let mut grads = Grads::in_dtype(all.map(|weight| (weight, 0)), dtype)?;
        let neurons = weights.gate.dim(0)?;
        let learn: Vec<u8> = (0..neurons).map(|i| u8::from(i % 3 == 1)).collect();
        let learn_i = Tensor::new(learn.as_slice(), dy.device())?;
        let some = Learners::Neurons(LearningNeurons::new(&learn_i, neurons.div_ceil(3))?);
        for learners in [&Learners::All, &some] {
            grads.begin();
            for _ in 0..2 {
                saved.weight_gradients(weights, &deltas, learners, &mut grads)?;
                found.extend(all.map(|weight| grads.get(weight).unwrap().copy().unwrap()));
            }
        }
    }
    Ok(found)
}
