//! What a template may make of a conversation, in bytes. The engine's fuel counts instructions, but one of them may make a text of any length: a letter that is put behind itself
//! thirty times is a billion letters. Here each pays for what it is about to make, and a conversation has only so much to spend.
//!
//! The engine has no place to pay at. Its compiled instructions are therefore rewritten: before an operation stands a filter that takes its operands, pays, and gives them back.
//! Filters so named cannot be called from a template. Values that hold each other, or themselves, are refused where they are made: neither printing nor comparing them would end.

use minijinja::machinery::{Instruction, Instructions, Token, WhitespaceConfig, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, escape_formatter};

/// Under this name stands in a template's context what it may spend; no template can set it.
pub(super) const ALLOWED: &str = "\0allowed";
const LEFT: &str = "\0left";
/// A conversation may spend so many bytes, and so many for each of its own and the template's: texts are put together message by message, each time anew.
const BASE: usize = 32 << 20;
const EACH: usize = 2048;
/// Of a product of texts and numbers that stand in a template.
const CONSTANT: usize = 1 << 20;
/// Of an entry of a list or a table: two values, and what the table has beside them.
const ENTRY: usize = 64;
/// Values within values, at most.
const DEPTH: usize = 100;
/// No filter of this instruction is remembered.
const UNREMEMBERED: u8 = !0;

const ADDS: &str = "\0adds";
const COMPARES: &str = "\0compares";
const FINDS: &str = "\0finds";
const JOINS: &str = "\0joins";
const JOINS_BY: &str = "\0joins_by";
const KEEPS: &str = "\0keeps";
const LISTS: &str = "\0lists";
const MADE: &str = "\0made";
const PRINTS: &str = "\0prints";
const REPEATS: &str = "\0repeats";
const REPLACES: &str = "\0replaces";
const SPENDS: &str = "\0spends";

/// Pays for what an operation makes of operands.
type Price = fn(&State<'_, '_>, &[Value]) -> Result<(), Error>;

/// What a template and messages of so many bytes may spend.
pub(super) fn allowed(bytes: usize) -> usize {
    BASE.saturating_add(bytes.saturating_mul(EACH))
}

/// Adds what [`paying`] instructions call.
pub(super) fn add_prices(environment: &mut Environment<'_>) {
    let prices: [(&str, Price); 9] = [
        (ADDS, adds),
        (COMPARES, compares),
        // What is looked for in a text is printed.
        (FINDS, |state, given| {
            let in_text = given.last().is_some_and(|place| place.as_str().is_some());
            if in_text { prints(state, given) } else { compares(state, given) }
        }),
        (JOINS, |state, given| joins(state, given.first(), given.get(1))),
        (JOINS_BY, |state, given| joins(state, given.get(1), given.first())),
        (LISTS, |state, given| {
            prints(state, given)?;
            spend(state, given.iter().filter_map(Value::as_str).map(str::len).sum::<usize>().saturating_mul(ENTRY))
        }),
        (PRINTS, prints),
        (REPEATS, repeats),
        (REPLACES, replaces),
    ];
    for (name, price) in prices {
        environment.add_filter(name, move |state: &State<'_, '_>, given: Rest<Value>| {
            price(state, &given).map(|()| Value::from(given.0))
        });
    }
    environment
        .add_filter(KEEPS, |state: &State<'_, '_>, value: Value| weigh(state, &value, false, DEPTH).map(|()| value));
    environment.add_filter(MADE, |state: &State<'_, '_>, value: Value| {
        let entries = value.len().unwrap_or(0).saturating_mul(ENTRY);
        spend(state, value.as_str().map_or(entries, str::len)).map(|()| value)
    });
    environment.add_filter(SPENDS, |state: &State<'_, '_>, bytes: usize| spend(state, bytes));
    environment.set_formatter(|out, state, value| {
        weigh(state, value, true, DEPTH)?;
        escape_formatter(out, state, value)
    });
    // What a template includes would not pay, were it itself: there is no other.
    environment.set_path_join_callback(|_, _| "".into());
    // It prints all that there is.
    environment.remove_global("debug");
}

/// Refuses a template with a product of texts and numbers that it names itself and that may be longer than [`CONSTANT`]: the engine forms it while it reads
/// the template, before anything pays.
///
/// # Errors
/// Names what is too long; what is no template.
// With features that other crates may ask for it is no unit.
#[allow(clippy::default_constructed_unit_structs)]
pub(super) fn check_constants(source: &str) -> Result<(), Error> {
    let (mut texts, mut times, mut multiplies) = (0usize, 1usize, false);
    for token in tokenize(source, false, SyntaxConfig::default(), WhitespaceConfig::default()) {
        match token?.0 {
            Token::VariableStart | Token::BlockStart => (texts, times, multiplies) = (0, 1, false),
            Token::Str(text) => texts += text.len(),
            Token::String(text) => texts += text.len(),
            // A sum of numbers is at most the product of what follows each.
            Token::Int(number) => {
                times = times.saturating_mul(usize::try_from(number).map_or(usize::MAX, |n| n.saturating_add(1)));
            }
            Token::Mul => multiplies = true,
            Token::Pow => times = usize::MAX,
            Token::VariableEnd | Token::BlockEnd if multiplies && texts.saturating_mul(times) > CONSTANT => {
                return Err(refused(format!("a product of texts may be longer than {CONSTANT} bytes")));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The same instructions, each of which pays.
pub(super) fn paying<'a>(instructions: &Instructions<'a>) -> Instructions<'a> {
    let all: Vec<&Instruction<'a>> = (0..instructions.len() as u32).filter_map(|at| instructions.get(at)).collect();
    let around: Vec<_> = all.iter().map(|instruction| (before(instruction), behind(instruction))).collect();
    // Where each begins, and the end.
    let mut begins = vec![0];
    begins.extend(around.iter().scan(0, |end, (before, behind)| {
        *end += (before.len() + 1 + behind.len()) as u32;
        Some(*end)
    }));
    let moved = |target: &u32| begins.get(*target as usize).copied().unwrap_or(*target);
    let mut rewritten = Instructions::new(instructions.name(), instructions.source());
    for ((at, instruction), (before, behind)) in all.iter().enumerate().zip(around) {
        let own = match instruction {
            Instruction::Iterate(target) => Instruction::Iterate(moved(target)),
            Instruction::Jump(target) => Instruction::Jump(moved(target)),
            Instruction::JumpIfFalse(target) => Instruction::JumpIfFalse(moved(target)),
            Instruction::JumpIfFalseOrPop(target) => Instruction::JumpIfFalseOrPop(moved(target)),
            Instruction::JumpIfTrueOrPop(target) => Instruction::JumpIfTrueOrPop(moved(target)),
            Instruction::BuildMacro(name, target, flags) => Instruction::BuildMacro(name, moved(target), *flags),
            other => (*other).clone(),
        };
        let line = instructions.get_line(at as u32).map_or(0, |line| u16::try_from(line).unwrap_or(u16::MAX));
        for one in before.into_iter().chain([own]).chain(behind) {
            rewritten.add_with_line(one, line);
        }
    }
    rewritten
}

/// What stands before an instruction.
fn before<'a>(instruction: &Instruction<'a>) -> Vec<Instruction<'a>> {
    let operands = |price, count: Option<u16>| {
        let mut paid = vec![filter(price, count), Instruction::UnpackLists(1)];
        // Where it is not known how many operands there are, the instruction reads it.
        paid.extend(count.map(|_| Instruction::DiscardTop));
        paid
    };
    let spends = |bytes: usize| {
        vec![Instruction::LoadConst(Value::from(bytes)), filter(SPENDS, Some(1)), Instruction::DiscardTop]
    };
    match instruction {
        Instruction::StringConcat => operands(PRINTS, Some(2)),
        Instruction::Add => operands(ADDS, Some(2)),
        Instruction::Mul => operands(REPEATS, Some(2)),
        Instruction::Eq
        | Instruction::Ne
        | Instruction::Lt
        | Instruction::Lte
        | Instruction::Gt
        | Instruction::Gte
        | Instruction::CompareAndPreserve(_) => operands(COMPARES, Some(2)),
        Instruction::In => operands(FINDS, Some(2)),
        Instruction::EmitRaw(text) => spends(text.len()),
        Instruction::BuildList(Some(entries)) | Instruction::BuildMap(entries) => {
            spends((entries + 1).saturating_mul(ENTRY))
        }
        Instruction::GetItem | Instruction::StoreLocal(_) => vec![filter(KEEPS, Some(1))],
        Instruction::SetAttr(_) => vec![Instruction::Swap, filter(KEEPS, Some(1)), Instruction::Swap],
        Instruction::PerformTest(_, count, _) if *count != Some(1) => operands(COMPARES, *count),
        Instruction::ApplyFilter(name, count, _) => {
            of_filter(name).map_or_else(Vec::new, |price| operands(price, *count))
        }
        Instruction::CallMethod(name, count) => of_method(name).map_or_else(Vec::new, |price| operands(price, *count)),
        _ => Vec::new(),
    }
}

/// What stands behind an instruction.
fn behind<'a>(instruction: &Instruction<'a>) -> Vec<Instruction<'a>> {
    match instruction {
        Instruction::Slice
        | Instruction::ApplyFilter(..)
        | Instruction::CallFunction(..)
        | Instruction::CallMethod(..)
        | Instruction::CallObject(_) => vec![filter(MADE, Some(1))],
        _ => Vec::new(),
    }
}

fn filter(name: &str, count: Option<u16>) -> Instruction<'_> {
    Instruction::ApplyFilter(name, count, UNREMEMBERED)
}

fn of_filter(name: &str) -> Option<&'static str> {
    match name {
        "abs" | "attr" | "bool" | "count" | "d" | "default" | "first" | "float" | "int" | "last" | "length"
        | "round" => None,
        "batch" | "chain" | "groupby" | "items" | "lines" | "list" | "map" | "max" | "min" | "reject"
        | "rejectattr" | "reverse" | "select" | "selectattr" | "slice" | "sort" | "split" | "unique" | "zip" => {
            Some(LISTS)
        }
        "join" => Some(JOINS),
        "replace" => Some(REPLACES),
        _ => Some(PRINTS),
    }
}

fn of_method(name: &str) -> Option<&'static str> {
    match name {
        "endswith" | "get" | "isalnum" | "isalpha" | "isdigit" | "items" | "keys" | "startswith" | "values" => None,
        "join" => Some(JOINS_BY),
        "replace" => Some(REPLACES),
        "split" | "splitlines" => Some(LISTS),
        _ => Some(PRINTS),
    }
}

fn prints(state: &State<'_, '_>, given: &[Value]) -> Result<(), Error> {
    given.iter().try_for_each(|value| weigh(state, value, true, DEPTH))
}

fn compares(state: &State<'_, '_>, given: &[Value]) -> Result<(), Error> {
    given.iter().try_for_each(|value| weigh(state, value, false, DEPTH))
}

fn adds(state: &State<'_, '_>, given: &[Value]) -> Result<(), Error> {
    let size = |value: &Value| value.as_str().map_or_else(|| entries(value).saturating_mul(ENTRY), str::len);
    spend(state, given.iter().map(size).fold(0, usize::saturating_add))
}

fn repeats(state: &State<'_, '_>, given: &[Value]) -> Result<(), Error> {
    let length = given.iter().find_map(|value| value.as_str().map(str::len));
    let times = given.iter().find_map(Value::as_usize);
    spend(state, length.unwrap_or(0).saturating_mul(times.unwrap_or(0)))
}

fn joins(state: &State<'_, '_>, list: Option<&Value>, between: Option<&Value>) -> Result<(), Error> {
    let (Some(list), Some(between)) = (list, between) else {
        return list.map_or(Ok(()), |list| weigh(state, list, true, DEPTH));
    };
    weigh(state, list, true, DEPTH)?;
    weigh(state, between, true, DEPTH)?;
    let length = between.as_str().map_or(0, str::len);
    spend(state, entries(list).max(list.as_str().map_or(0, str::len)).saturating_mul(length))
}

fn replaces(state: &State<'_, '_>, given: &[Value]) -> Result<(), Error> {
    prints(state, given)?;
    let [Some(text), Some(old), Some(new)] = [0, 1, 2].map(|at| given.get(at).and_then(Value::as_str)) else {
        // What is no text is printed first, and then no longer than what was paid for.
        let length = |value: &Value| value.as_str().map_or(ENTRY, str::len);
        return spend(state, given.iter().map(length).fold(1, usize::saturating_mul));
    };
    spend(state, text.matches(old).count().saturating_mul(new.len()))
}

/// Entries of a list or a table; none of a text.
fn entries(value: &Value) -> usize {
    if value.as_str().is_some() { 0 } else { value.len().unwrap_or(0) }
}

/// Pays for all that a value holds, entry by entry, with the bytes of its texts where these are printed.
fn weigh(state: &State<'_, '_>, value: &Value, texts: bool, depth: usize) -> Result<(), Error> {
    if let Some(text) = value.as_str() {
        return spend(state, if texts { text.len() } else { 0 });
    }
    let is_table = match value.kind() {
        ValueKind::Map => true,
        ValueKind::Seq | ValueKind::Iterable => false,
        // A number, say.
        _ => return Ok(()),
    };
    let depth =
        depth.checked_sub(1).ok_or_else(|| refused(format!("more than {DEPTH} values stand within each other")))?;
    for entry in value.try_iter()? {
        spend(state, ENTRY)?;
        weigh(state, &entry, texts, depth)?;
        if is_table {
            weigh(state, &value.get_item(&entry)?, texts, depth)?;
        }
    }
    Ok(())
}

fn spend(state: &State<'_, '_>, bytes: usize) -> Result<(), Error> {
    if bytes == 0 {
        return Ok(());
    }
    let left = state.get_temp(LEFT).or_else(|| state.lookup(ALLOWED)).and_then(|left| left.as_usize()).unwrap_or(BASE);
    let left = left.checked_sub(bytes).ok_or_else(|| refused("it makes too much of a conversation".to_owned()))?;
    state.set_temp(LEFT, Value::from(left));
    Ok(())
}

fn refused(problem: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem)
}
