//! Whatever is wrong with a header is said in one line, and costs no memory that the file does not back.

use proptest::prelude::*;
use rstest::rstest;

use super::forge::{Forge, Value, open, refusal, text, texts, u32};

#[test]
fn a_sound_file_opens() {
    let file = Forge::llama().open().unwrap();
    assert_eq!(file.tensors().count(), 11);
    assert!(!file.has_tokenizer());
}

type Change = fn(&mut Forge);

const HUGE: u64 = u64::MAX;

#[rstest]
#[case::version_1(|f: &mut Forge| f.version = 1, "is GGUF version 1")]
#[case::version_4(|f: &mut Forge| f.version = 4, "is GGUF version 4; give a file of version 2 or 3")]
#[case::big_endian(|f: &mut Forge| f.version = 3 << 24, "is a big-endian GGUF file")]
#[case::more_tensors(|f: &mut Forge| f.claimed_tensors = Some(12), "")]
#[case::tensors_without_end(|f: &mut Forge| f.claimed_tensors = Some(HUGE), "claims 18446744073709551615 tensors")]
#[case::keys_without_end(|f: &mut Forge| f.claimed_keys = Some(1 << 40), "claims 1099511627776 metadata keys")]
#[case::a_key_fewer(|f: &mut Forge| f.claimed_keys = Some(7), "")]
#[case::a_key_twice(|f: &mut Forge| f.keys.push(("llama.block_count".into(), u32(1))), "the key `llama.block_count` twice")]
#[case::a_key_without_name(|f: &mut Forge| f.keys.push((String::new(), u32(1))), "a metadata key without a name")]
#[case::an_unknown_kind_of_value(|f: &mut Forge| f.set("a.key", Value(13, vec![0; 8])), "key `a.key` is of the unknown type 13")]
#[case::neither_true_nor_false(|f: &mut Forge| f.set("a.key", Value(7, vec![2])), "key `a.key` is neither true nor false")]
#[case::an_endless_text(|f: &mut Forge| f.keys.push(("a.key".into(), Value(8, HUGE.to_le_bytes().to_vec()))), "claims 18446744073709551615 bytes")]
#[case::no_text(|f: &mut Forge| f.set("a.key", Value(8, [1u64.to_le_bytes().to_vec(), vec![0xff]].concat())), "key `a.key` is not UTF-8 text")]
#[case::an_endless_list(|f: &mut Forge| f.set("a.key", list(0, HUGE)), "claims 18446744073709551615 elements of key `a.key`")]
#[case::an_endless_list_of_texts(|f: &mut Forge| f.set("a.key", list(8, 1 << 60)), "claims 1152921504606846976 elements")]
#[case::a_list_of_lists(|f: &mut Forge| f.set("a.key", list(9, 1)), "key `a.key` is a list of lists")]
#[case::alignment_0(|f: &mut Forge| f.set("general.alignment", u32(0)), "`general.alignment` is 0")]
#[case::alignment_24(|f: &mut Forge| f.set("general.alignment", u32(24)), "`general.alignment` is 24")]
#[case::alignment_1(|f: &mut Forge| f.set("general.alignment", u32(1)), "`general.alignment` is 1")]
#[case::alignment_of_a_text(|f: &mut Forge| f.set("general.alignment", text("32")), "`general.alignment` is \"32\"")]
#[case::alignment_beyond_the_file(|f: &mut Forge| f.set("general.alignment", Value(10, (1u64 << 63).to_le_bytes().to_vec())), "no multiple of the alignment")]
#[case::a_tensor_twice(|f: &mut Forge| f.tensors[3].name = "blk.0.attn_q.weight".into(), "the tensor `blk.0.attn_q.weight` twice")]
#[case::no_dimension(|f: &mut Forge| f.tensors[1].sizes.clear(), "`blk.0.attn_norm.weight` has 0 dimensions")]
#[case::five_dimensions(|f: &mut Forge| f.tensors[1].sizes = vec![2; 5], "`blk.0.attn_norm.weight` has 5 dimensions")]
#[case::a_size_of_0(|f: &mut Forge| f.tensors[1].sizes = vec![0], "`blk.0.attn_norm.weight`: has a size of 0")]
#[case::sizes_overflow(|f: &mut Forge| f.tensors[2].sizes = vec![1 << 32, 1 << 32], "`blk.0.attn_q.weight`: its sizes [4294967296, 4294967296] have no product")]
#[case::bytes_overflow(|f: &mut Forge| f.tensors[2].sizes = vec![1 << 62], "have no product")]
#[case::larger_than_the_file(|f: &mut Forge| f.tensors[2].sizes = vec![32, 1 << 30], "`blk.0.attn_q.weight` claims 137438953472 bytes")]
#[case::misaligned(|f: &mut Forge| f.tensors[2].offset += 8, "`blk.0.attn_q.weight` begins at 648, no multiple of the alignment 32")]
#[case::beyond_the_file(|f: &mut Forge| f.tensors[2].offset = 1 << 40, "`blk.0.attn_q.weight` claims 4096 bytes from 1099511627776 on")]
#[case::beyond_all(|f: &mut Forge| f.tensors[2].offset = HUGE - 31, "`blk.0.attn_q.weight` claims 4096 bytes")]
#[case::overlap(|f: &mut Forge| f.tensors[3].offset = f.tensors[2].offset + 32, "the tensors `blk.0.attn_q.weight` and `blk.0.attn_k.weight` overlap")]
#[case::the_same_place(|f: &mut Forge| f.tensors[3].offset = f.tensors[2].offset, "overlap")]
#[case::a_type_of_the_future(|f: &mut Forge| f.tensors[2].kind = 77, "`blk.0.attn_q.weight` is of the unknown type 77, which is not read")]
#[case::a_type_that_is_not_read(|f: &mut Forge| f.tensors[2].kind = 10, "`blk.0.attn_q.weight` is of type Q2_K, which is not read; give a file in F32")]
#[case::rows_that_fill_no_block(|f: &mut Forge| f.tensors[2].kind = 12, "rows of 32 do not fill blocks of 256 (Q4_K)")]
#[case::a_name_of_two_lines(|f: &mut Forge| f.tensors[2].name = "two\nlines".into(), "`two\u{fffd}lines`")]
#[case::an_endless_name(|f: &mut Forge| f.tensors[2].name = "x".repeat(100_000), " ..; ")]
#[case::no_width(|f: &mut Forge| f.remove("llama.embedding_length"), "has no key `llama.embedding_length`")]
#[case::no_epsilon(|f: &mut Forge| f.remove("llama.attention.layer_norm_rms_epsilon"), "has no key `llama.attention.layer_norm_rms_epsilon`")]
#[case::layers_without_end(|f: &mut Forge| f.set("llama.block_count", u32(u32::MAX)), "`llama.block_count` is 4294967295, it holds 11 tensors")]
#[case::no_heads(|f: &mut Forge| f.set("llama.attention.head_count", u32(0)), "it has 0 heads")]
#[case::heads_that_do_not_fit(|f: &mut Forge| f.set("llama.attention.head_count", u32(3)), "")]
#[case::a_width_that_is_a_text(|f: &mut Forge| f.set("llama.embedding_length", text("32")), "`llama.embedding_length` is \"32\", no count")]
fn a_lie_is_found(#[case] change: Change, #[case] problem: &str) {
    let mut forge = Forge::llama();
    change(&mut forge);
    let error = forge.refused();
    assert!(error.contains(problem), "{error}");
}

/// A list that claims more than it has.
fn list(kind: u32, count: u64) -> Value {
    Value(9, [kind.to_le_bytes().to_vec(), count.to_le_bytes().to_vec()].concat())
}

#[rstest]
#[case::nothing(b"", "is empty; give a GGUF file")]
#[case::another_format(b"PK\x03\x04", "does not begin with GGUF")]
#[case::a_magic_alone(b"GGUF", "its version claims 4 bytes")]
#[case::cut_in_the_counts(b"GGUF\x03\0\0\0\x01\0\0", "tensors claims 8 bytes at byte 8, 3 are left")]
fn what_is_no_gguf_file_is_refused(#[case] bytes: &[u8], #[case] problem: &str) {
    let error = refusal(bytes);
    assert!(error.contains(problem), "{error}");
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let whole = Forge::llama().bytes();
    for length in (0..whole.len()).step_by(7) {
        refusal(&whole[..length]);
    }
    // The padding behind the last tensor is no loss.
    assert!(open(&[whole, vec![0; 31]].concat()).is_ok());
}

/// A file with everything that a header can have, opened, its tensors loaded and its tokenizer built.
fn read_all(bytes: &[u8]) {
    let Ok(file) = open(bytes) else { return };
    let names: Vec<String> = file.tensors().map(|(name, _)| name.to_owned()).collect();
    for name in names {
        let _ = file.load(&name, &candle_core::Device::Cpu, None);
    }
    let _ = file.tokenizer_files();
}

fn with_everything() -> Vec<u8> {
    let mut forge = Forge::with_tokens("gpt2", "qwen2", &["a", "b", "ab", "<s>"], &["a b"]);
    forge.set("tokenizer.ggml.token_type", super::forge::numbers(5, &[1, 1, 1, 3].map(i32::to_le_bytes)));
    forge.set("tokenizer.ggml.bos_token_id", u32(3));
    forge.set("tokenizer.chat_templates", texts(&["tools"]));
    forge.set("tokenizer.chat_template.tools", text("{{ x }}"));
    let gate = forge.tensor("blk.0.ffn_gate.weight");
    (gate.kind, gate.bytes) = (8, 64 * 34);
    // The bytes behind move up with it.
    let mut at = 0;
    for tensor in &mut forge.tensors {
        tensor.offset = at;
        at = (at + tensor.bytes as u64).next_multiple_of(32);
    }
    forge.bytes()
}

#[test]
fn the_file_with_everything_is_sound() {
    let file = open(&with_everything()).unwrap();
    assert!(file.load("model.layers.0.mlp.gate_proj.weight", &candle_core::Device::Cpu, None).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn no_change_of_bytes_ends_the_program(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = with_everything();
        // The header is a fifth of the file; changes of weights change only weights.
        let header = 1200.min(bytes.len());
        for (place, byte) in changes {
            bytes[place.index(header)] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        read_all(&bytes);
    }
}
