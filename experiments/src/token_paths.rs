//! The paths that tokens took through a model's experts: kept while it reads, coloured by group in a terminal.

use std::ops::Range;

use tinyonn::data::TextTokenizer;
use tinyonn::decoder::Step;
use tinyonn::generation::TextStream;
use tinyonn::moe::MoeSpec;
use tinyonn::ops::host;
use tinyonn::{Error, Result};

use crate::names::node_name;

/// The experts of the tokens of several texts; tokens are read one behind the other, or whole texts again and again.
#[derive(Debug)]
pub struct PathKeeper {
    spec: MoeSpec,
    /// `[text][token][layer]`.
    texts: Vec<Vec<Vec<Taken>>>,
}

/// What a token took in one layer.
#[derive(Clone, Debug)]
struct Taken {
    experts: Vec<u32>,
    /// The groups of these experts, and the largest gate in each.
    groups: Vec<(usize, f64)>,
}

/// What a token took in one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenPath {
    /// Its experts, ascending.
    pub experts: Vec<u32>,
    /// The group of the largest gate; of several the one that the fewest tokens of the text take in this layer, which says most of this token. `None` of a token
    /// that no decision is for: it takes all.
    pub group: Option<usize>,
}

/// A text and the paths of its tokens.
#[derive(Clone, Debug)]
pub struct TokenPaths {
    /// The variant's name.
    pub variant: String,
    /// The groups' names.
    pub groups: Vec<String>,
    /// The text of each token; of one that ends amid a character, nothing, which the next one has whole.
    pub pieces: Vec<String>,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// `[token][layer]`; the last token is written and not read.
    pub paths: Vec<Vec<TokenPath>>,
}

impl PathKeeper {
    /// Of `texts` texts that a variant reads.
    ///
    /// # Errors
    /// A variant without groups.
    pub fn new(spec: &MoeSpec, texts: usize) -> Result<Self> {
        if spec.levels.is_empty() {
            let problem = format!("`{}` has no groups of experts to show", spec.name);
            return Err(Error::setting("--show-routing", problem, "show a variant whose routers choose experts"));
        }
        Ok(Self { spec: spec.clone(), texts: vec![Vec::new(); texts] })
    }

    /// Keeps what a step read; its pass was asked for gates.
    ///
    /// # Errors
    /// What the device reports.
    pub fn hear(&mut self, step: &Step<'_>) -> Result<()> {
        let gates = step.traces.iter().filter_map(|trace| trace.gates.as_ref()).collect::<Vec<_>>();
        let gates = host::read(&gates)?;
        let experts = self.spec.experts();
        let of_groups = self.spec.experts_under(0);
        for (row, text) in step.prompts.iter().enumerate() {
            let Some(kept) = self.texts.get_mut(*text) else { continue };
            // One position behind those that are known, or the text from its beginning.
            if step.read > 1 {
                kept.clear();
            }
            for position in row * step.read..(row + 1) * step.read {
                let of_layer = |gates: &Vec<f64>| {
                    let gates = gates.get(position * experts..(position + 1) * experts).unwrap_or_default();
                    let gate = |expert: usize| gates.get(expert).copied().unwrap_or(0.0);
                    let largest = |group: &Range<usize>| group.clone().map(gate).fold(0.0, f64::max);
                    let groups = of_groups.iter().map(largest).enumerate().filter(|(_, gate)| *gate > 0.0).collect();
                    let taken = (0..experts).filter(|expert| gate(*expert) > 0.0).map(|expert| expert as u32);
                    Taken { experts: taken.collect(), groups }
                };
                kept.push(gates.iter().map(of_layer).collect());
            }
        }
        Ok(())
    }

    /// The paths of text `number`, whose prompt and all of whose tokens these are.
    ///
    /// # Errors
    /// What the tokenizer reports.
    pub fn paths(
        &self,
        number: usize,
        tokenizer: &TextTokenizer,
        prompt: &[u32],
        written: &[u32],
    ) -> Result<TokenPaths> {
        let mut stream = TextStream::new(tokenizer);
        let pieces = prompt.iter().chain(written).map(|token| stream.push(*token)).collect::<Result<Vec<_>>>()?;
        let groups = (0..self.spec.experts_under(0).len()).map(|group| node_name(&self.spec, 0, group)).collect();
        let paths = self.chosen(self.texts.get(number).map_or(&[][..], Vec::as_slice));
        Ok(TokenPaths { variant: self.spec.name.to_string(), groups, pieces, prompt: prompt.len(), paths })
    }
}

impl PathKeeper {
    /// One group for each token and layer.
    fn chosen(&self, text: &[Vec<Taken>]) -> Vec<Vec<TokenPath>> {
        let layers = text.first().map_or(0, Vec::len);
        let mut tokens = vec![vec![0usize; self.spec.experts_under(0).len()]; layers];
        for taken in text {
            for (tokens, taken) in tokens.iter_mut().zip(taken) {
                taken.groups.iter().for_each(|(group, _)| tokens[*group] += 1);
            }
        }
        let path = |(tokens, taken): (&Vec<usize>, &Taken)| {
            let first = |a: &&(usize, f64), b: &&(usize, f64)| {
                b.1.total_cmp(&a.1).then(tokens[a.0].cmp(&tokens[b.0])).then(a.0.cmp(&b.0))
            };
            let group = taken.groups.iter().min_by(first).map(|(group, _)| *group);
            let decided = taken.experts.len() < self.spec.experts();
            TokenPath { experts: taken.experts.clone(), group: group.filter(|_| decided) }
        };
        text.iter().map(|taken| tokens.iter().zip(taken).map(path).collect()).collect()
    }
}

/// Colours of groups in a terminal of 256, and of what is written on them; after eight they come round again.
const COLOURS: [(u8, u8); 8] = [(25, 231), (214, 16), (36, 16), (175, 16), (166, 16), (117, 16), (240, 231), (142, 16)];

impl TokenPaths {
    /// The layers that were read.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.paths.first().map_or(0, Vec::len)
    }

    /// The group of a token in a layer.
    #[must_use]
    pub fn group(&self, token: usize, layer: usize) -> Option<usize> {
        self.paths.get(token)?.get(layer)?.group
    }

    /// The text, each token on the colour of its group in `layer`, and a line that names the groups; without colours where `colours` is false.
    #[must_use]
    pub fn in_terminal(&self, layer: usize, colours: bool) -> String {
        let on = |group: Option<usize>, text: &str| match group.filter(|_| colours && !text.is_empty()) {
            Some(group) => {
                let (paper, ink) = COLOURS[group % COLOURS.len()];
                // A colour does not run over the end of a line.
                let lines: Vec<String> = text
                    .split('\n')
                    .map(|line| {
                        if line.is_empty() {
                            String::new()
                        } else {
                            format!("\x1b[48;5;{paper};38;5;{ink}m{line}\x1b[0m")
                        }
                    })
                    .collect();
                lines.join("\n")
            }
            None => text.to_owned(),
        };
        let text: String =
            self.pieces.iter().enumerate().map(|(token, piece)| on(self.group(token, layer), piece)).collect();
        let mut seen: Vec<usize> = (0..self.paths.len()).filter_map(|token| self.group(token, layer)).collect();
        seen.sort_unstable();
        seen.dedup();
        let groups: Vec<String> =
            seen.into_iter().map(|group| on(Some(group), &format!(" {} ", self.groups[group]))).collect();
        format!("{text}\n\ngroups of layer {layer}: {}", groups.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths() -> TokenPaths {
        let path = |group: Option<usize>| vec![TokenPath { experts: vec![1], group }];
        TokenPaths {
            variant: "V".into(),
            groups: vec!["A".into(), "B".into()],
            pieces: ["a", "\nb", "c", "d"].map(str::to_owned).to_vec(),
            prompt: 1,
            paths: vec![path(Some(1)), path(Some(0)), path(None)],
        }
    }

    #[test]
    fn a_token_is_on_its_groups_colour_and_the_last_on_none() {
        let text = paths().in_terminal(0, true);
        assert!(text.starts_with("\x1b[48;5;214;38;5;16ma\x1b[0m\n\x1b[48;5;25;38;5;231mb\x1b[0mcd\n\n"), "{text:?}");
    }

    /// Of equal gates the rarer group says more; a larger gate says most.
    #[test]
    fn a_tokens_group_is_the_one_that_says_most() {
        let spec = tinyonn::moe::variant("TinyOnn").map(|variant| variant.spec.clone()).ok();
        let keeper = spec.map(|spec| PathKeeper { spec, texts: vec![] });
        let taken = |groups: &[(usize, f64)]| vec![Taken { experts: vec![0], groups: groups.to_vec() }];
        let text = [
            taken(&[(0, 1.0), (1, 1.0)]),
            taken(&[(0, 1.0), (2, 1.0)]),
            taken(&[(0, 0.5), (1, 0.4)]),
            taken(&[(1, 1.0)]),
        ];
        let groups = keeper.map(|keeper| keeper.chosen(&text).iter().map(|path| path[0].group).collect::<Vec<_>>());
        assert_eq!(groups, Some(vec![Some(0), Some(2), Some(0), Some(1)]));
    }

    #[test]
    fn without_colours_it_is_the_text() {
        assert_eq!(paths().in_terminal(0, false), "a\nbcd\n\ngroups of layer 0:  A   B ");
    }
}
