//! The table as seccomp programs, one a kind of thread.
//!
//! They are made and the main thread's is set before there is a guest: making and setting one takes a quarter of a millisecond.

use std::collections::BTreeMap;
use std::io;
use std::sync::OnceLock;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

use super::calls::{Check, TABLE, ThreadKind};

/// By kind of thread; there once the jail is closed.
static PROGRAMS: OnceLock<Vec<(ThreadKind, BpfProgram)>> = OnceLock::new();

fn condition(argument: u8, operation: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    let len = if value > u64::from(u32::MAX) { SeccompCmpArgLen::Qword } else { SeccompCmpArgLen::Dword };
    SeccompRule::new(vec![SeccompCondition::new(argument, len, operation, value)?])
}

fn rules(check: Check) -> Result<Vec<SeccompRule>, BackendError> {
    use SeccompCmpOp::{Eq, MaskedEq, Ne};
    match check {
        Check::Any => Ok(Vec::new()),
        Check::OneOf(argument, values) => values.iter().map(|value| condition(argument, Eq, u64::from(*value))).collect(),
        Check::All(values) => {
            let conditions = values.iter().map(|(argument, value)| {
                SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, Eq, u64::from(*value))
            });
            Ok(vec![SeccompRule::new(conditions.collect::<Result<_, _>>()?)?])
        }
        Check::Bits(argument, mask, value) => Ok(vec![condition(argument, MaskedEq(mask), value)?]),
        Check::Not(argument, value) => Ok(vec![condition(argument, Ne, u64::from(value))?]),
        Check::Own(argument) => Ok(vec![condition(argument, Eq, u64::from(std::process::id()))?]),
    }
}

/// What a kind of thread may call; all else traps.
fn program(thread: ThreadKind) -> Result<BpfProgram, BackendError> {
    let mut calls: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for (call, others, check) in TABLE {
        if thread == ThreadKind::Main || others.contains(&thread) {
            calls.entry(*call).or_default().extend(rules(*check)?);
        }
    }
    SeccompFilter::new(calls, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}

/// Has the C library make threads by `clone`, whose flags can be checked: those of `clone3` lie in memory.
fn without_clone3() -> Result<BpfProgram, BackendError> {
    let call = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let missing = SeccompAction::Errno(libc::ENOSYS as u32);
    SeccompFilter::new(call, SeccompAction::Allow, missing, TargetArch::x86_64)?.try_into()
}

/// Makes all programs, and sets the main thread's; those it makes from now on begin with it.
pub fn close() -> io::Result<()> {
    let programs = ThreadKind::ALL.into_iter().map(|thread| Ok((thread, program(thread)?)));
    let programs: Vec<_> = programs.collect::<Result<_, BackendError>>().map_err(io::Error::other)?;
    apply_filter(&without_clone3().map_err(io::Error::other)?).map_err(io::Error::other)?;
    let _ = PROGRAMS.set(programs);
    narrow(ThreadKind::Main)
}

/// Sets the filter of this kind on the calling thread; nothing where there is no jail.
pub fn narrow(thread: ThreadKind) -> io::Result<()> {
    let programs = PROGRAMS.get().into_iter().flatten();
    match programs.into_iter().find(|(kind, _)| *kind == thread) {
        Some((_, program)) => apply_filter(program).map_err(io::Error::other),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_of_the_table_is_there_once_for_a_thread_or_with_other_arguments() {
        for (at, (call, others, check)) in TABLE.iter().enumerate() {
            for (other, more, second) in &TABLE[at + 1..] {
                let free = matches!(check, Check::Any) || matches!(second, Check::Any);
                assert!(call != other || !free, "call {call} of {others:?} and {more:?}: one row allows what the other checks");
            }
        }
    }

    #[test]
    fn every_kind_of_thread_has_a_program_and_the_main_thread_the_longest() {
        let len = |thread| program(thread).unwrap().len();
        for thread in [ThreadKind::Io, ThreadKind::Flush, ThreadKind::Spend] {
            assert!(len(thread) < len(ThreadKind::Main), "{thread:?}");
        }
        assert!(len(ThreadKind::Main) < 4096);
    }
}
