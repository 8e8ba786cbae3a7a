//! Every line of the generated tasks is read again and its answer computed by other means.

use std::collections::{BTreeSet, HashMap};

use rstest::rstest;
use serde_json::Value;
use tinyonn::data::{Task, arithmetic, records, sorting};

/// The value of an expression with + - * / and parentheses, by precedence climbing.
struct Expression<'a>(&'a [u8]);

impl Expression<'_> {
    fn value(text: &str) -> i64 {
        let squeezed: Vec<u8> = text.bytes().filter(|byte| *byte != b' ').collect();
        let mut expression = Expression(&squeezed);
        let value = expression.sum();
        assert!(expression.0.is_empty(), "{text}");
        value
    }

    fn take(&mut self, byte: u8) -> bool {
        let taken = self.0.first() == Some(&byte);
        if taken {
            self.0 = &self.0[1..];
        }
        taken
    }

    fn sum(&mut self) -> i64 {
        let mut value = self.product();
        loop {
            if self.take(b'+') {
                value += self.product();
            } else if self.take(b'-') {
                value -= self.product();
            } else {
                return value;
            }
        }
    }

    fn product(&mut self) -> i64 {
        let mut value = self.atom();
        while self.take(b'*') {
            value *= self.atom();
        }
        value
    }

    fn atom(&mut self) -> i64 {
        if self.take(b'(') {
            let value = self.sum();
            assert!(self.take(b')'));
            return value;
        }
        let digits = self.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (number, rest) = self.0.split_at(digits);
        self.0 = rest;
        std::str::from_utf8(number).unwrap().parse().unwrap()
    }
}

/// English below one hundred, read digit by digit.
fn number(words: &str) -> i64 {
    const ONES: &str = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen";
    const TENS: &str = "twenty thirty forty fifty sixty seventy eighty ninety";
    words
        .split('-')
        .map(|word| match ONES.split(' ').position(|one| one == word) {
            Some(one) => one as i64,
            None => 10 * (TENS.split(' ').position(|ten| ten == word).unwrap() as i64 + 2),
        })
        .sum()
}

fn arithmetic_line_is_right(line: &str) -> bool {
    if let Some((left, answer)) = line.split_once(" is ") {
        let parts: Vec<&str> = left.split(' ').collect();
        let (a, b) = (number(parts[0]), number(parts[2]));
        let value = match parts[1] {
            "plus" => a + b,
            "minus" => a - b,
            "times" => a * b,
            other => panic!("{other}"),
        };
        return value == number(answer);
    }
    let (left, answer) = line.split_once(" = ").unwrap();
    if let Some((a, b)) = left.split_once(" / ") {
        let (quotient, rest) = answer.split_once(" rem ").unwrap_or((answer, "0"));
        let [a, b, quotient, rest] = [a, b, quotient, rest].map(|text| text.parse::<i64>().unwrap());
        return quotient * b + rest == a && (0..b).contains(&rest);
    }
    Expression::value(left) == answer.parse::<i64>().unwrap()
}

fn sorting_line_is_right(line: &str) -> bool {
    let (given, answer) = line.split_once(" -> ").unwrap();
    let given = given.strip_prefix("sort ").unwrap();
    let (down, given) = given.strip_prefix("down ").map_or((false, given), |rest| (true, rest));
    let (mut given, mut answer): (Vec<&str>, Vec<&str>) = (given.split(' ').collect(), answer.split(' ').collect());
    if down {
        answer.reverse();
    }
    let ordered = answer.is_sorted_by(|a, b| match (a.parse::<i64>(), b.parse::<i64>()) {
        (Ok(a), Ok(b)) => a <= b,
        _ => a <= b,
    });
    given.sort_unstable();
    answer.sort_unstable();
    ordered && given == answer
}

fn records_are_right(document: &str) -> bool {
    let mut known: HashMap<u64, Value> = HashMap::new();
    document.lines().all(|line| {
        if let Ok(record) = serde_json::from_str::<Value>(line) {
            known.insert(record["id"].as_u64().unwrap(), record);
            return true;
        }
        let (left, answer) = line.split_once(" -> ").unwrap();
        let answer: Value = serde_json::from_str(answer).unwrap();
        if let Some((field, id)) = left.split_once(" of ") {
            return known[&id.parse().unwrap()][field] == answer;
        }
        let pairs: Vec<(&str, &str)> = left.split(' ').map(|pair| pair.split_once('=').unwrap()).collect();
        pairs.len() == answer.as_object().unwrap().len()
            && pairs.iter().all(|(key, value)| {
                let text = answer[*key].as_str().map_or_else(|| answer[*key].to_string(), str::to_owned);
                text == *value
            })
    })
}

#[test]
fn every_answer_is_right() {
    let line_by_line = |task: Task, right: fn(&str) -> bool| {
        for line in task.documents.iter().flat_map(|document| document.text.lines()) {
            assert!(right(line), "{line}");
        }
    };
    line_by_line(arithmetic(1, 200_000), arithmetic_line_is_right);
    line_by_line(sorting(1, 200_000), sorting_line_is_right);
    for document in records(1, 200_000).documents {
        assert!(records_are_right(&document.text), "{}", document.text);
    }
}

/// The checks above would be worthless if they accepted everything.
#[test]
fn the_checks_refuse_wrong_answers() {
    for wrong in ["37 + 58 = 96", "85 / 7 = 12 rem 2", "85 / 7 = 11 rem 8", "3 + 4 * 5 = 35", "two plus two is five"] {
        assert!(!arithmetic_line_is_right(wrong), "{wrong}");
    }
    for wrong in ["sort 5 3 9 -> 3 9 5", "sort 5 3 -> 3 4", "sort down 1 2 -> 1 2", "sort 10 9 -> 10 9"] {
        assert!(!sorting_line_is_right(wrong), "{wrong}");
    }
    for wrong in ["{\"id\":1,\"age\":2}\nage of 1 -> 3", "id=1 name=Ada -> {\"id\":1,\"name\":\"Ida\"}"] {
        assert!(!records_are_right(wrong), "{wrong}");
    }
}

#[rstest]
#[case::arithmetic(arithmetic)]
#[case::sorting(sorting)]
#[case::records(records)]
fn generators_are_pure_sized_and_varied(#[case] generate: fn(u64, usize) -> Task) {
    let task = generate(7, 60_000);
    assert_eq!(task, generate(7, 60_000));
    assert_ne!(task, generate(8, 60_000));
    assert!((60_000..66_000).contains(&task.bytes()), "{}", task.bytes());
    assert!(generate(7, 90_000).documents.starts_with(&task.documents));

    let lines: Vec<&str> = task.documents.iter().flat_map(|document| document.text.lines()).collect();
    let distinct: BTreeSet<&&str> = lines.iter().collect();
    assert!(distinct.len() * 10 > lines.len() * 9, "{} of {} lines are distinct", distinct.len(), lines.len());
    for document in &task.documents {
        assert!((40..=80).contains(&document.text.lines().count()));
    }
}
