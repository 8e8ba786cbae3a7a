//! Bounds on the lengths that a template names itself: widths of fields, indentations, counts of columns. The engine makes whatever is asked
//! for, and the process ends where memory cannot hold it.

use minijinja::value::{Rest, Value};
use minijinja::{Environment, Error, ErrorKind, State, filters};
use minijinja_contrib::pycompat;

/// Digits of a length, at most.
const DIGITS: usize = 4;
const MOST: usize = 9999;

/// Puts bounded forms of the filters `batch`, `format`, `indent` and `slice`, and of the method `format`, in the place of the engine's own.
pub(super) fn bound_lengths(environment: &mut Environment<'_>) {
    let counted = [
        ("batch", Value::from_function(filters::batch)),
        ("indent", Value::from_function(filters::indent)),
        ("slice", Value::from_function(filters::slice)),
    ];
    for (name, filter) in counted {
        environment.add_filter(name, move |state: &State<'_, '_>, given: Rest<Value>| {
            check_numbers(given.get(1..).unwrap_or_default())?;
            filter.call(state, &given)
        });
    }
    let format = Value::from_function(filters::format);
    environment.add_filter("format", move |state: &State<'_, '_>, given: Rest<Value>| {
        if let Some((text, values)) = given.split_first() {
            check_widths(text)?;
            // A star takes the width from the values.
            let has_star = text.as_str().is_some_and(|text| text.contains('*'));
            check_numbers(if has_star { values } else { &[] })?;
        }
        format.call(state, &given)
    });
    environment.set_unknown_method_callback(|state, value, method, given| {
        if method == "format" {
            check_widths(value)?;
        }
        pycompat::unknown_method_callback(state, value, method, given)
    });
}

/// Refuses numbers above [`MOST`], given by their places or by their names.
fn check_numbers(given: &[Value]) -> Result<(), Error> {
    for value in given {
        if value.is_kwargs() {
            let named = value.try_iter()?.map(|key| value.get_item(&key)).collect::<Result<Vec<_>, _>>()?;
            check_numbers(&named)?;
        } else if value.as_usize().is_some_and(|number| number > MOST) {
            return Err(refused());
        }
    }
    Ok(())
}

/// Refuses a text whose fields, of printf's kind (`%5d`) or of Python's (`{:>5}`), are wider than [`MOST`].
fn check_widths(format: &Value) -> Result<(), Error> {
    let text = format.as_str().unwrap_or_default();
    let of_python = text.split('{').skip(1).filter_map(|field| field.split('}').next()?.split_once(':'));
    let of_printf = text.split('%').skip(1).map(|field| {
        let field = field.strip_prefix('(').and_then(|named| named.split_once(')')).map_or(field, |(_, rest)| rest);
        field.split(char::is_alphabetic).next().unwrap_or_default()
    });
    let mut fields = of_python.map(|(_, field)| field).chain(of_printf);
    let is_wide = |number: &str| number.trim_start_matches('0').len() > DIGITS;
    if fields.any(|field| field.split(|c: char| !c.is_ascii_digit()).any(is_wide)) { Err(refused()) } else { Ok(()) }
}

fn refused() -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("asks for a length above {MOST}"))
}
