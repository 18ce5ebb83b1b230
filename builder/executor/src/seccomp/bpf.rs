//! From rules to classic BPF. Numbers are found by binary search, so that a call costs some ten instructions, not hundreds.

use std::collections::BTreeMap;

use super::{
    ActiveRule, Comparison, Condition,
    names::{Arch, X32_BIT},
};

/// Linux takes no longer filter (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;
/// Kills the thread: a call of an architecture that the profile does not name (libseccomp's default).
const BAD_ARCH: u32 = 0;
const ENOSYS: u32 = 0x0005_0000 | libc::ENOSYS as u32;
const ERRNO: u32 = 0x0005_0000;

// Offsets in struct seccomp_data.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGS: u32 = 16;

// Instruction codes (linux/filter.h).
const LOAD: u16 = 0x20;
const RETURN: u16 = 0x06;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const AND: u16 = 0x54;

fn op(code: u16, jt: u8, jf: u8, k: u32) -> u64 {
    u64::from(code) << 48 | u64::from(jt) << 40 | u64::from(jf) << 32 | u64::from(k)
}

/// What is done with one call number.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Decision {
    /// Tried in order: all conditions, then the return value.
    conditional: Vec<(Vec<Condition>, u32)>,
    /// When none holds; `None` means the default.
    otherwise: Option<u32>,
}

/// The filter, or `None` when it would be too long.
pub(super) fn compile(arches: &[Arch], default: u32, rules: &[ActiveRule<'_>]) -> Option<Vec<u64>> {
    let mut program = vec![op(LOAD, 0, 0, ARCH)];
    for &arch in arches.iter().filter(|&&arch| arch != Arch::X32) {
        let mut table = ranges(arch, default, rules);
        if arch == Arch::X86_64 {
            if arches.contains(&Arch::X32) {
                let x32 = ranges(Arch::X32, default, rules);
                table.retain(|(start, _)| *start < X32_BIT);
                // Numbers below X32_BIT are the 64-bit table's.
                table.extend(x32.into_iter().filter(|(start, _)| *start >= X32_BIT));
            } else {
                table.retain(|(start, _)| *start < X32_BIT);
                table.push((X32_BIT, Decision { otherwise: Some(BAD_ARCH), ..Decision::default() }));
            }
        }
        let mut block = vec![op(LOAD, 0, 0, NUMBER)];
        block.extend(search(&table, default)?);
        // On to the next architecture when it is not this one.
        program
            .extend([op(JUMP_EQUAL, 1, 0, arch.audit()), op(JUMP, 0, 0, u32::try_from(block.len()).ok()?)]);
        program.extend(block);
    }
    program.push(op(RETURN, 0, 0, BAD_ARCH));
    (program.len() <= MAX_INSTRUCTIONS).then_some(program)
}

/// The whole number space as ranges by their start, sorted; the first starts at 0.
fn ranges(arch: Arch, default: u32, rules: &[ActiveRule<'_>]) -> Vec<(u32, Decision)> {
    let mut decisions: BTreeMap<u32, Decision> = BTreeMap::new();
    for rule in rules {
        for number in rule.names.iter().filter_map(|name| arch.number(name)) {
            let decision = decisions.entry(number).or_default();
            let mut indices: Vec<u8> = rule.args.iter().map(|condition| condition.index).collect();
            indices.sort_unstable();
            let repeated = indices.windows(2).any(|pair| pair[0] == pair[1]);
            if rule.args.is_empty() {
                decision.otherwise.get_or_insert(rule.action);
            } else if repeated {
                // Several conditions on one argument are alternatives (runc's reading).
                decision.conditional.extend(rule.args.iter().map(|one| (vec![*one], rule.action)));
            } else {
                decision.conditional.push((rule.args.to_vec(), rule.action));
            }
        }
    }
    // A rule for all arguments leaves nothing to those for some.
    decisions.values_mut().filter(|decision| decision.otherwise.is_some()).for_each(|decision| {
        decision.conditional.clear();
    });
    let base = if arch == Arch::X32 { X32_BIT } else { 0 };
    let mut ranges: Vec<(u32, Decision)> = vec![(base, Decision::default())];
    let mut put = |start: u32, decision: Decision| match ranges.last_mut() {
        Some((last, of)) if *last == start => *of = decision,
        Some((_, of)) if *of == decision => {}
        _ => ranges.push((start, decision)),
    };
    let mut next = base;
    for (number, decision) in decisions {
        if number > next {
            put(next, Decision::default());
        }
        put(number, decision);
        next = number + 1;
    }
    // A call that is newer than the profile is no forbidden one but an unknown one: programs then fall back to an
    // older call, where EPERM would make them fail. runc does the same.
    let beyond = if default & 0xffff_0000 == ERRNO { Some(ENOSYS) } else { None };
    put(next, Decision { otherwise: beyond, ..Decision::default() });
    ranges
}

/// Code that finds the range of the number in the accumulator and decides.
fn search(ranges: &[(u32, Decision)], default: u32) -> Option<Vec<u64>> {
    if let [(_, decision)] = ranges {
        return decide(decision, default);
    }
    let (left, right) = ranges.split_at(ranges.len() / 2);
    let pivot = right[0].0;
    let (left, right) = (search(left, default)?, search(right, default)?);
    let mut code = match u8::try_from(left.len()) {
        Ok(skip) => vec![op(JUMP_GREATER_EQUAL, skip, 0, pivot)],
        Err(_) => vec![op(JUMP_GREATER_EQUAL, 0, 1, pivot), op(JUMP, 0, 0, u32::try_from(left.len()).ok()?)],
    };
    code.extend(left);
    code.extend(right);
    Some(code)
}

fn decide(decision: &Decision, default: u32) -> Option<Vec<u64>> {
    let mut code = Vec::new();
    for (conditions, action) in &decision.conditional {
        // Built from the end, so that the distance to the next rule is known.
        let mut rule = vec![op(RETURN, 0, 0, *action)];
        for condition in conditions.iter().rev() {
            let mut test = compare(condition, u8::try_from(rule.len()).ok()?);
            test.append(&mut rule);
            rule = test;
        }
        code.extend(rule);
    }
    code.push(op(RETURN, 0, 0, decision.otherwise.unwrap_or(default)));
    Some(code)
}

/// Code that goes on when the condition holds and else jumps over the `rest` instructions behind it.
/// An argument is two 32-bit words, the lower first (little endian, as all architectures here are).
fn compare(condition: &Condition, rest: u8) -> Vec<u64> {
    let low_at = ARGS + 8 * u32::from(condition.index);
    let (load_low, load_high) = (op(LOAD, 0, 0, low_at), op(LOAD, 0, 0, low_at + 4));
    let words = |value: u64| (value as u32, (value >> 32) as u32);
    let (low, high) = words(condition.value);
    // Greater (or equal): high above settles it, high below too, equal asks the low word.
    let above = |low_code: u16, negate: bool| {
        let (yes, no) = if negate { (rest, 0) } else { (0, rest) };
        let skip_to_end = if negate { rest + 2 } else { 2 };
        let fail_early = if negate { 2 } else { rest + 2 };
        vec![
            load_high,
            op(JUMP_GREATER, skip_to_end + 1, 0, high),
            op(JUMP_EQUAL, 0, fail_early, high),
            load_low,
            op(low_code, yes, no, low),
        ]
    };
    match condition.op {
        Comparison::Equal => {
            vec![load_high, op(JUMP_EQUAL, 0, rest + 2, high), load_low, op(JUMP_EQUAL, 0, rest, low)]
        }
        Comparison::NotEqual => {
            vec![load_high, op(JUMP_EQUAL, 0, 2, high), load_low, op(JUMP_EQUAL, rest, 0, low)]
        }
        Comparison::Greater => above(JUMP_GREATER, false),
        Comparison::GreaterOrEqual => above(JUMP_GREATER_EQUAL, false),
        Comparison::LessOrEqual => above(JUMP_GREATER, true),
        Comparison::Less => above(JUMP_GREATER_EQUAL, true),
        Comparison::MaskedEqual => {
            let (low_two, high_two) = words(condition.value_two);
            vec![
                load_high,
                op(AND, 0, 0, high),
                op(JUMP_EQUAL, 0, rest + 3, high_two),
                load_low,
                op(AND, 0, 0, low),
                op(JUMP_EQUAL, 0, rest, low_two),
            ]
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the kernel would make of it.
    pub(in crate::seccomp) fn interpret(program: &[u64], arch: u32, number: u32, args: [u64; 6]) -> u32 {
        let (mut at, mut a) = (0usize, 0u32);
        loop {
            let insn = program[at];
            let (code, jt, jf, k) =
                ((insn >> 48) as u16, (insn >> 40) as u8, (insn >> 32) as u8, insn as u32);
            at += 1;
            let mut jump = |holds: bool| at += usize::from(if holds { jt } else { jf });
            match code {
                LOAD if k == NUMBER => a = number,
                LOAD if k == ARCH => a = arch,
                LOAD => a = (args[(k - ARGS) as usize / 8] >> (8 * ((k - ARGS) % 8))) as u32,
                AND => a &= k,
                JUMP => at += k as usize,
                JUMP_EQUAL => jump(a == k),
                JUMP_GREATER => jump(a > k),
                JUMP_GREATER_EQUAL => jump(a >= k),
                RETURN => return k,
                _ => panic!("unknown instruction {code:#x}"),
            }
        }
    }

    fn holds(condition: &Condition, argument: u64) -> bool {
        let value = condition.value;
        match condition.op {
            Comparison::NotEqual => argument != value,
            Comparison::Less => argument < value,
            Comparison::LessOrEqual => argument <= value,
            Comparison::Equal => argument == value,
            Comparison::GreaterOrEqual => argument >= value,
            Comparison::Greater => argument > value,
            Comparison::MaskedEqual => argument & value == condition.value_two,
        }
    }

    fn value() -> impl Strategy<Value = u64> {
        // Few values, so that equality is met, in both words.
        (0u64..3, 0u64..3).prop_map(|(high, low)| high << 32 | low)
    }

    fn condition(index: u8) -> impl Strategy<Value = Condition> {
        use Comparison::*;
        let op = prop::sample::select(vec![
            NotEqual,
            Less,
            LessOrEqual,
            Equal,
            GreaterOrEqual,
            Greater,
            MaskedEqual,
        ]);
        (op, value(), value()).prop_map(move |(op, value, value_two)| Condition {
            index,
            value,
            value_two,
            op,
        })
    }

    proptest! {
        #[test]
        fn compiled_conditions_mean_what_they_say(
            first in (condition(0), condition(1)),
            second in condition(2),
            args in prop::array::uniform6(value()),
        ) {
            let both = [first.0, first.1];
            let one = [second];
            let rules = [
                ActiveRule { names: vec!["write"], action: 11, args: &both },
                ActiveRule { names: vec!["write"], action: 12, args: &one },
                ActiveRule { names: vec!["read"], action: 13, args: &[] },
            ];
            let program = compile(&[Arch::NATIVE], 99, &rules).unwrap();
            let run = |name| interpret(&program, Arch::NATIVE.audit(), Arch::NATIVE.number(name).unwrap(), args);
            let expected = if both.iter().all(|c| holds(c, args[usize::from(c.index)])) {
                11
            } else if holds(&second, args[2]) {
                12
            } else {
                99
            };
            prop_assert_eq!(run("write"), expected);
            prop_assert_eq!(run("read"), 13);
            prop_assert_eq!(run("close"), 99);
        }
    }
}
