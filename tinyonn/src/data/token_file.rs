//! The tokens of a text of any size: on disk, where a batch is found by its number.
//!
//! Documents are visited one after another and tokenised a group at a time, once. What is in memory is a group ([`GROUP_BYTES`] and
//! one document, [`GROUP_DOCUMENTS`]) and its tokens, and later a batch; on disk 8 bytes a token that is read. Tokens wait on disk because
//! what a scan must know before its first batch is known only after the last token: how many batches there are, and the SHA-256 by
//! which a scan that was cut off knows its text. And a share, or a scan that goes on, finds its batches without those before them.

use std::fs::File;
use std::io::{BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use candle_core::Device;

use super::corpus::CorpusDigest;
use super::pack::{TokenDigest, check_shape, is_read_only, owned, rows_of_batch};
use super::{Batch, Batches, Counted, Document, EncodedDocument, TaskTokens, TextTokenizer, TokenSet};
use crate::{Error, Result};

/// The file, which is hidden, so that a folder of text it lies in is still the same text.
const NAME: &str = ".tokens";
/// A group is tokenised once its documents have so many bytes, or are so many.
const GROUP_BYTES: usize = 1 << 20;
const GROUP_DOCUMENTS: usize = 256;
/// A token and its document.
const BYTES: usize = 8;
/// Tokens that are read at a time to be hashed.
const PIECE: usize = 1 << 16;

/// Tokens by task, on disk as long as this lives; their [`Batches`] are those of [`TokenSet::encode`].
///
/// ```
/// use candle_core::Device;
/// use tinyonn::data::{Batches, Corpus, Counted, TextTokenizer, TokenFile, TokenSet, arithmetic, sorting};
/// # let folder = tempfile::tempdir()?;
///
/// let corpus = Corpus { tasks: vec![arithmetic(0, 8_000), sorting(0, 8_000)] };
/// let tokenizer = TextTokenizer::train(&corpus, 300)?;
/// let on_disk = TokenFile::write(&Counted::new(&corpus)?, &tokenizer, usize::MAX, folder.path())?;
/// let in_memory = TokenSet::encode(&corpus, &tokenizer)?;
/// assert_eq!((on_disk.corpus_sha256(), on_disk.sha256()), (&*corpus.sha256(), in_memory.sha256()));
/// let batch = on_disk.batch_of_task(1, 2, (32, 4), &Device::Cpu)?;
/// assert_eq!(batch.documents, in_memory.batch_of_task(1, 2, (32, 4), &Device::Cpu)?.documents);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct TokenFile {
    tasks: Vec<Kept>,
    eos: u32,
    corpus: String,
    sha256: String,
    file: Mutex<File>,
    path: PathBuf,
}

/// A task's place in the file.
#[derive(Debug)]
struct Kept {
    name: String,
    /// Tokens before it.
    first: u64,
    tokens: usize,
}

impl TokenFile {
    /// Tokenises at most `most` tokens of each task, from its beginning, into a file in `folder`; the rest of the text is read for
    /// its SHA-256 alone.
    ///
    /// # Errors
    /// Text that cannot be read, or that changed since it was counted; what the tokenizer or the system reports.
    pub fn write(text: &Counted<'_>, tokenizer: &TextTokenizer, most: usize, folder: &Path) -> Result<Self> {
        Self::write_with(
            text,
            &|task, documents| tokenizer.encode_documents(task, documents),
            tokenizer.eos(),
            most,
            folder,
        )
    }

    fn write_with(text: &Counted<'_>, encode: Encode<'_>, eos: u32, most: usize, folder: &Path) -> Result<Self> {
        let path = folder.join(NAME);
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(|e| Error::io(&path, e))?;
        let (corpus, sha256) = (String::new(), String::new());
        let mut tokens = Self { tasks: Vec::new(), eos, corpus, sha256, file: Mutex::new(file), path };
        let names = text.text.names();
        let (mut corpus, mut digest) = (CorpusDigest::new(names.len()), TokenDigest::new(eos, names.len()));
        let (mut first, mut documents) = (0, 0);
        for (task, (name, count)) in names.into_iter().zip(&text.documents).enumerate() {
            corpus.task(&name, *count);
            let mut writer = Writer::new(&tokens, (encode, &name), documents, most)?;
            text.text.visit(task, &mut |document| {
                corpus.document(&document);
                writer.push(document)
            })?;
            documents += *count as u32;
            if writer.next != documents {
                let remedy = "leave the text alone while it is read, and scan again";
                return Err(Error::setting(format!("task {name}"), "its text changed while it was read", remedy));
            }
            let written = writer.finish()?;
            let kept = Kept { name, first, tokens: written };
            first += kept.tokens as u64;
            tokens.digest(&kept, &mut digest)?;
            tokens.tasks.push(kept);
        }
        (tokens.corpus, tokens.sha256) = (corpus.hex(), digest.hex());
        Ok(tokens)
    }

    /// [`Corpus::sha256`](super::Corpus::sha256) of the whole text.
    #[must_use]
    pub fn corpus_sha256(&self) -> &str {
        &self.corpus
    }

    /// At most about `most` tokens of each task in memory: all, or as many of its rows of `length` at equal distances.
    ///
    /// ```
    /// use tinyonn::data::{Batches, Corpus, Counted, TextTokenizer, TokenFile, sorting};
    ///
    /// # let folder = tempfile::tempdir()?;
    /// let corpus = Corpus { tasks: vec![sorting(0, 8_000)] };
    /// let tokenizer = TextTokenizer::train(&corpus, 300)?;
    /// let on_disk = TokenFile::write(&Counted::new(&corpus)?, &tokenizer, usize::MAX, folder.path())?;
    /// let some = on_disk.spread(32, 320)?;
    /// assert!(some.tokens() < on_disk.targets()[0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// What the system reports; a length of zero.
    pub fn spread(&self, length: usize, most: usize) -> Result<TokenSet> {
        check_shape(length, 1)?;
        let tasks = self.tasks.iter().map(|task| self.spread_of_task(task, length, most)).collect::<Result<_>>()?;
        Ok(TokenSet { tasks, documents: Vec::new(), eos: self.eos })
    }

    fn spread_of_task(&self, task: &Kept, length: usize, most: usize) -> Result<TaskTokens> {
        if task.tokens <= most.max(length + 1) {
            return self.window(task, 0, task.tokens);
        }
        let (rows, few) = ((task.tokens - 1) / length, (most / length).max(1));
        let mut spread = TaskTokens::empty(&task.name);
        for at in 0..few {
            let from = at * rows / few * length;
            // The last row's last token is predicted as well.
            let row = self.window(task, from, from + length + usize::from(at + 1 == few))?;
            spread.tokens.extend(row.tokens);
            spread.documents.extend(row.documents);
        }
        Ok(spread)
    }

    /// A task's tokens from one place to another.
    fn window(&self, task: &Kept, from: usize, to: usize) -> Result<TaskTokens> {
        let mut bytes = vec![0; (to - from) * BYTES];
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let place = SeekFrom::Start((task.first + from as u64) * BYTES as u64);
        file.seek(place).and_then(|_| file.read_exact(&mut bytes)).map_err(|e| Error::io(&self.path, e))?;
        let (words, _) = bytes.as_chunks::<4>();
        let word = |at: usize| words.iter().skip(at).step_by(2).map(|word| u32::from_le_bytes(*word)).collect();
        Ok(TaskTokens { name: task.name.clone(), tokens: word(0), documents: word(1) })
    }

    fn digest(&self, task: &Kept, digest: &mut TokenDigest) -> Result<()> {
        digest.task(&task.name, task.tokens);
        let pieces = || (0..task.tokens).step_by(PIECE).map(|from| from..task.tokens.min(from + PIECE));
        let mut read_only = false;
        for piece in pieces() {
            let TaskTokens { tokens, documents, .. } = self.window(task, piece.start, piece.end)?;
            digest.tokens(&tokens);
            read_only |= documents.into_iter().any(is_read_only);
        }
        for piece in pieces().filter(|_| read_only) {
            digest.read_only(&self.window(task, piece.start, piece.end)?.documents);
        }
        Ok(())
    }
}

impl Batches for TokenFile {
    fn names(&self) -> Vec<String> {
        self.tasks.iter().map(|task| task.name.clone()).collect()
    }

    fn targets(&self) -> Vec<usize> {
        self.tasks.iter().map(|task| task.tokens.saturating_sub(1)).collect()
    }

    fn batch_of_task(&self, task: usize, number: usize, shape: (usize, usize), device: &Device) -> Result<Batch> {
        let (length, batch) = shape;
        check_shape(length, batch)?;
        let kept = self.tasks.get(task);
        let rows = kept.map_or(0, |kept| kept.tokens.saturating_sub(1).div_ceil(length));
        let rows = rows_of_batch((task, number), rows, shape)?;
        let mut set = TokenSet { tasks: Vec::new(), documents: Vec::new(), eos: self.eos };
        if let Some(kept) = kept {
            set.tasks.push(self.window(kept, rows.start * length, kept.tokens.min(rows.end * length + 1))?);
        }
        // Of these tokens alone it is the first batch.
        let batch = set.batch_of_task(0, 0, shape, device)?;
        Ok(Batch { tasks: vec![task as u32; batch.tasks.len()], ..batch })
    }

    fn sha256(&self) -> String {
        self.sha256.clone()
    }
}

impl Drop for TokenFile {
    fn drop(&mut self) {
        // One that cannot be removed now is written over by the next that goes there.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A tokenizer of a task's documents.
type Encode<'a> = &'a dyn Fn(&str, &[Document]) -> Result<Vec<EncodedDocument>>;

/// Appends a task's tokens to the file.
struct Writer<'a> {
    out: BufWriter<File>,
    path: &'a Path,
    encode: Encode<'a>,
    task: &'a str,
    eos: u32,
    /// The number of the next document, over all tasks.
    next: u32,
    /// Documents that are not tokenised yet, the first of them with this number.
    group: Vec<Document>,
    first: u32,
    /// Tokens that are written, and at most.
    written: usize,
    most: usize,
}

impl<'a> Writer<'a> {
    fn new(tokens: &'a TokenFile, (encode, task): (Encode<'a>, &'a str), next: u32, most: usize) -> Result<Self> {
        let mut file = tokens.file.lock().unwrap_or_else(PoisonError::into_inner);
        let own = file.seek(SeekFrom::End(0)).and_then(|_| file.try_clone()).map_err(|e| Error::io(&tokens.path, e))?;
        let (out, path, eos) = (BufWriter::new(own), tokens.path.as_path(), tokens.eos);
        Ok(Self { out, path, encode, task, eos, next, group: Vec::new(), first: next, written: 0, most })
    }

    fn push(&mut self, document: Document) -> Result<()> {
        self.next += 1;
        if self.written == self.most {
            return Ok(());
        }
        if self.group.is_empty() {
            self.first = self.next - 1;
        }
        self.group.push(document);
        let bytes: usize = self.group.iter().map(|document| document.text.len()).sum();
        if bytes < GROUP_BYTES && self.group.len() < GROUP_DOCUMENTS { Ok(()) } else { self.flush() }
    }

    /// Tokenises the group, and writes as much of it as is asked for.
    fn flush(&mut self) -> Result<()> {
        for (document, encoded) in (self.first..).zip((self.encode)(self.task, &self.group)?) {
            for (token, owner) in owned(encoded, document, self.eos).take(self.most - self.written) {
                let pair = u64::from(token) | u64::from(owner) << 32;
                self.out.write_all(&pair.to_le_bytes()).map_err(|e| Error::io(self.path, e))?;
                self.written += 1;
            }
        }
        self.group.clear();
        Ok(())
    }

    /// The tokens that are written.
    fn finish(mut self) -> Result<usize> {
        self.flush()?;
        self.out.flush().map_err(|e| Error::io(self.path, e))?;
        Ok(self.written)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::data::Documents;

    /// Documents of uneven sizes, made as they are asked for.
    struct Endless<'a> {
        documents: usize,
        visited: &'a Cell<usize>,
    }

    const EOS: u32 = 999;

    fn of_tokens(tokens: Vec<u32>) -> EncodedDocument {
        EncodedDocument { tokens, answers: None }
    }

    impl Documents for Endless<'_> {
        fn names(&self) -> Vec<String> {
            vec!["a".into(), "b".into()]
        }

        fn count(&self, _: usize) -> Result<usize> {
            Ok(self.documents)
        }

        fn visit(&self, _: usize, each: &mut dyn FnMut(Document) -> Result<()>) -> Result<()> {
            (0..self.documents).try_for_each(|at| {
                self.visited.set(self.visited.get() + 1);
                each(Document::new(at.to_string(), "x".repeat(1 + at % 9000)))
            })
        }
    }

    #[test]
    fn a_group_of_documents_is_in_memory_and_what_is_not_read_is_not_tokenised()
    -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let (visited, encoded, most) = (Cell::new(0), Cell::new(0), 3_000_000);
        // A token a byte.
        let encode = |_: &str, texts: &[Document]| {
            let bytes: usize = texts.iter().map(|document| document.text.len()).sum();
            assert!(texts.len() <= GROUP_DOCUMENTS && bytes < GROUP_BYTES + 9000, "{} {bytes}", texts.len());
            encoded.set(encoded.get() + bytes);
            Ok(texts.iter().map(|document| of_tokens(vec![7; document.text.len()])).collect())
        };
        let text = Endless { documents: 20_000, visited: &visited };
        let tokens = TokenFile::write_with(&Counted::new(&text)?, &encode, EOS, most, folder.path())?;
        assert_eq!((tokens.targets(), visited.get()), (vec![most - 1; 2], 40_000));
        assert!(encoded.get() < 2 * (most + GROUP_BYTES + 9000), "{} bytes were tokenised", encoded.get());
        assert_eq!(std::fs::metadata(folder.path().join(NAME))?.len(), (2 * BYTES * most) as u64);
        drop(tokens);
        assert_eq!(std::fs::read_dir(folder.path())?.count(), 0);
        Ok(())
    }

    #[test]
    fn text_that_changes_between_its_readings_is_refused() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let (visited, encode) = (Cell::new(0), |_: &str, texts: &[Document]| Ok(vec![of_tokens(vec![1]); texts.len()]));
        let text = Endless { documents: 9, visited: &visited };
        let counted = Counted { text: &text, documents: vec![9, 8] };
        let refused = TokenFile::write_with(&counted, &encode, EOS, 100, folder.path()).map(drop);
        let told = refused.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(told.contains("task b") && told.contains("changed while it was read"), "{told}");
        assert_eq!(std::fs::read_dir(folder.path())?.count(), 0);
        Ok(())
    }

    #[test]
    fn a_spread_holds_rows_from_beginning_to_end() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let visited = Cell::new(0);
        // Tokens are numbered through.
        let next = Cell::new(0);
        let encode = |_: &str, texts: &[Document]| {
            let number = |_| next.replace(next.get() + 1);
            Ok(texts.iter().map(|document| of_tokens((1..document.text.len()).map(number).collect())).collect())
        };
        let text = Endless { documents: 60, visited: &visited };
        let tokens = TokenFile::write_with(&Counted::new(&text)?, &encode, EOS, 1001, folder.path())?;
        let all = tokens.spread(10, 1001)?;
        let few = tokens.spread(10, 200)?;
        for (all, few) in all.tasks.iter().zip(&few.tasks) {
            assert_eq!((all.targets(), few.targets()), (1000, 200));
            for (at, row) in few.tokens.chunks_exact(10).enumerate() {
                assert_eq!(row, &all.tokens[at * 50..][..10]);
            }
            assert_eq!(few.tokens[200], all.tokens[960]);
        }
        Ok(())
    }
}
