//! A language that nobody speaks: its words are drawn, its grammar is fixed.

use rand::Rng as _;

use super::{generate, pick};
use crate::data::Task;
use crate::random::{self, Rng};

const ONSETS: [&str; 12] = ["b", "d", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v"];
const VOWELS: [&str; 5] = ["a", "e", "i", "o", "u"];
const NOUNS: usize = 32;
const VERBS: usize = 16;
const ADJECTIVES: usize = 12;

/// The task `invented_language`: about `bytes` of lines such as
///
/// ```text
/// ga-tolu mirek soran pesuma . na-vebi kolek tiruma dagan .
/// ```
///
/// The verb comes first, behind `ga-` (past), `na-` (present) or `shu-` (to come), then who acts, with the ending `-ek`, and what is acted upon,
/// `-uma`. An adjective follows its noun and ends in `-an`. Stems are drawn from `seed`; half of a line's nouns are two
/// that it comes back to.
pub fn invented_language(seed: u64, bytes: usize) -> Task {
    let words = Lexicon::new(seed);
    generate("invented_language", seed, bytes, |rng, lines| lines.push(words.line(rng)))
}

/// The stems of a seed's language.
struct Lexicon {
    nouns: Vec<String>,
    verbs: Vec<String>,
    adjectives: Vec<String>,
}

impl Lexicon {
    fn new(seed: u64) -> Self {
        let mut rng = random::stream(seed, "data/invented_language/words");
        let mut known: Vec<String> = Vec::new();
        while known.len() < NOUNS + VERBS + ADJECTIVES {
            let syllable = |rng: &mut Rng| format!("{}{}", pick(rng, &ONSETS), pick(rng, &VOWELS));
            let stem =
                format!("{}{}{}", syllable(&mut rng), syllable(&mut rng), pick(&mut rng, &["", "", "l", "n", "r"]));
            if !known.contains(&stem) {
                known.push(stem);
            }
        }
        let adjectives = known.split_off(NOUNS + VERBS);
        let verbs = known.split_off(NOUNS);
        Self { nouns: known, verbs, adjectives }
    }

    fn line(&self, rng: &mut Rng) -> String {
        let topics: Vec<&String> = (0..2).map(|_| pick(rng, &self.nouns)).collect();
        let count = rng.random_range(1..=3);
        (0..count).map(|_| self.sentence(rng, &topics)).collect::<Vec<_>>().join(" ")
    }

    fn sentence(&self, rng: &mut Rng, topics: &[&String]) -> String {
        let tense = *pick(rng, &["ga", "na", "shu"]);
        let verb = pick(rng, &self.verbs);
        let noun = |rng: &mut Rng, ending: &str| {
            let stem: &String =
                if rng.random_bool(0.5) { pick::<&String>(rng, topics) } else { pick::<String>(rng, &self.nouns) };
            let described =
                if rng.random_bool(0.4) { format!(" {}an", pick(rng, &self.adjectives)) } else { String::new() };
            format!("{stem}{ending}{described}")
        };
        let (actor, object) = (noun(rng, "ek"), noun(rng, "uma"));
        format!("{tense}-{verb} {actor} {object} .")
    }
}
