//! Tables: a story is a start, then inputs each with the effects and the phase it must lead to.

use super::*;

type Step = (Input, &'static [Effect], Phase);

const SLEPT: Input = Input::Exited { rest: Rest::Suspended, failed: false };
const STOPPED: Input = Input::Exited { rest: Rest::Stopped, failed: false };
const CRASHED: Input = Input::Exited { rest: Rest::Stopped, failed: true };
const ASLEEP: Phase = Phase::Rest(Rest::Suspended);
const COLD: Phase = Phase::Rest(Rest::Stopped);
const BROKEN: Phase = Phase::Rest(Rest::Error);
const OK: Effect = AnswerWakers(Answer::Done);
const SUSPENDED: Effect = AnswerSuspend(Answer::Done);
const BUSY: Effect = AnswerSuspend(Answer::Busy);
const END: Effect = EndSessions(End::Died);

#[track_caller]
fn story(start: Phase, steps: &[Step]) -> Machine {
    let mut machine = Machine::new(start);
    for (i, (input, effects, phase)) in steps.iter().enumerate() {
        assert_eq!(machine.step(*input), *effects, "step {i}, {input:?}");
        assert_eq!(machine.phase(), *phase, "step {i}, {input:?}");
    }
    machine
}

/// From running to told-to-suspend.
const TO_SAVING: [Step; 2] = [
    (Input::Idle, &[Quiesce], Phase::Quiescing),
    (Input::Quiesced(true), &[Suspend], Phase::Saving),
];

#[track_caller]
fn story_from_saving(steps: &[Step]) -> Machine {
    story(Phase::Running, &[&TO_SAVING, steps].concat())
}

#[test]
fn sleeps_when_idle_and_wakes_once_for_many() {
    story(
        ASLEEP,
        &[
            (Input::Wake, &[Spawn], Phase::Resuming),
            (Input::Wake, &[], Phase::Resuming),
            (Input::Wake, &[], Phase::Resuming),
            (Input::Ready, &[OK], Phase::Running),
            (Input::Wake, &[OK], Phase::Running),
            (Input::Idle, &[Quiesce], Phase::Quiescing),
            (Input::Quiesced(true), &[Suspend], Phase::Saving),
            (Input::Saved(true), &[TellSuspended], Phase::Leaving),
            (SLEPT, &[], ASLEEP),
        ],
    );
}

const PACKED: Effect = AnswerPack(Answer::Done);
const AT_REST: Input = Input::Packed(Rest::Suspended);

#[test]
fn a_sleeping_database_is_packed_and_stays_asleep() {
    let machine = story(
        ASLEEP,
        &[
            (Input::PackAsked, &[Pack], Phase::Packing),
            (Input::PackAsked, &[], Phase::Packing),
            (Input::SuspendAsked, &[SUSPENDED], Phase::Packing),
            (AT_REST, &[PACKED], ASLEEP),
            (Input::Wake, &[Spawn], Phase::Resuming),
            (Input::PackAsked, &[AnswerPack(Answer::Busy)], Phase::Resuming),
        ],
    );
    assert_eq!(machine.state(), State::Resuming);
    assert_eq!(Machine::new(Phase::Packing).state(), State::Suspended);
    assert!(!Machine::new(Phase::Packing).at_rest());
    story(COLD, &[(Input::PackAsked, &[AnswerPack(Answer::Busy)], COLD)]);
}

#[test]
fn whoever_needs_it_calls_packing_off_and_nothing_runs_beside_it() {
    let begun = (Input::PackAsked, &[Pack] as &[Effect], Phase::Packing);
    story(
        ASLEEP,
        &[
            begun,
            (Input::Wake, &[StopPacking], Phase::Packing),
            (Input::Wake, &[], Phase::Packing),
            (AT_REST, &[PACKED, Spawn], Phase::Resuming),
            (Input::Ready, &[OK], Phase::Running),
        ],
    );
    story(
        ASLEEP,
        &[
            begun,
            (Input::DeleteAsked, &[EndSessions(End::Deleted), AnswerWakers(Answer::Gone), AnswerSuspend(Answer::Gone), StopPacking], Phase::Packing),
            (Input::PackAsked, &[AnswerPack(Answer::Gone)], Phase::Packing),
            (AT_REST, &[PACKED, Remove], Phase::Deleting),
        ],
    );
    story(
        ASLEEP,
        &[
            begun,
            (Input::StopAsked, &[StopPacking], Phase::Packing),
            (Input::Wake, &[], Phase::Packing),
            (AT_REST, &[PACKED, EndSessions(End::Restarted), Discard], Phase::Leaving),
            (Input::Discarded { rest: Rest::Stopped, done: true }, &[AnswerStop(Answer::Done), Spawn], Phase::Resuming),
        ],
    );
    story(
        ASLEEP,
        &[
            begun,
            (Input::ShutDown, &[StopPacking], Phase::Packing),
            (AT_REST, &[PACKED], ASLEEP),
            (Input::PackAsked, &[AnswerPack(Answer::Busy)], ASLEEP),
        ],
    );
    story(ASLEEP, &[begun, (Input::Cut, &[StopPacking], Phase::Packing), (AT_REST, &[PACKED], ASLEEP)]);
}

#[test]
fn a_client_waiting_for_its_answer_puts_the_sleep_off() {
    story(
        Phase::Running,
        &[
            (Input::Idle, &[Quiesce], Phase::Quiescing),
            (Input::Quiesced(false), &[RetrySoon], Phase::Running),
            (Input::Retry, &[ListenForIdle], Phase::Running),
            (Input::Idle, &[Quiesce], Phase::Quiescing),
            (Input::Quiesced(true), &[Suspend], Phase::Saving),
        ],
    );
}

#[test]
fn a_wake_while_the_pooler_is_asked_lets_it_go_on() {
    story(
        Phase::Running,
        &[
            (Input::Idle, &[Quiesce], Phase::Quiescing),
            (Input::Wake, &[], Phase::Quiescing),
            (Input::Quiesced(true), &[Release, OK, RetrySoon], Phase::Running),
        ],
    );
}

#[test]
fn a_wake_calls_the_suspend_off_once() {
    story_from_saving(&[
        (Input::Wake, &[Cancel], Phase::Saving),
        (Input::Wake, &[], Phase::Saving),
        (Input::Saved(false), &[Release, OK, RetrySoon], Phase::Running),
        // And the next one can be called off again.
        (Input::Idle, &[Quiesce], Phase::Quiescing),
        (Input::Quiesced(true), &[Suspend], Phase::Saving),
        (Input::Spoke, &[Cancel], Phase::Saving),
    ]);
}

#[test]
fn a_wake_too_late_to_call_it_off_wakes_again() {
    story_from_saving(&[
        (Input::Wake, &[Cancel], Phase::Saving),
        (Input::Saved(true), &[TellSuspended], Phase::Leaving),
        (Input::Wake, &[], Phase::Leaving),
        (SLEPT, &[Spawn], Phase::Resuming),
        (Input::Ready, &[OK], Phase::Running),
    ]);
}

#[test]
fn bytes_in_flight_release_the_pooler() {
    story_from_saving(&[(Input::Saved(false), &[Release, RetrySoon], Phase::Running)]);
}

#[test]
fn a_client_that_speaks_matters_only_to_a_suspend() {
    for phase in [ASLEEP, Phase::Resuming, Phase::Running, Phase::Leaving, Phase::Deleting, Phase::Gone] {
        story(phase, &[(Input::Spoke, &[], phase)]);
    }
}

#[test]
fn an_asked_suspend_waits_for_the_statement_then_is_done() {
    story(
        Phase::Running,
        &[
            (Input::SuspendAsked, &[Quiesce], Phase::Quiescing),
            (Input::Quiesced(false), &[RetrySoon], Phase::Running),
            (Input::Retry, &[Quiesce], Phase::Quiescing),
            (Input::Quiesced(true), &[Suspend], Phase::Saving),
            (Input::Saved(true), &[TellSuspended], Phase::Leaving),
            (SLEPT, &[SUSPENDED], ASLEEP),
        ],
    );
    story(ASLEEP, &[(Input::SuspendAsked, &[SUSPENDED], ASLEEP)]);
    story(COLD, &[(Input::SuspendAsked, &[SUSPENDED], COLD)]);
    story(
        Phase::Resuming,
        &[(Input::SuspendAsked, &[], Phase::Resuming), (Input::Ready, &[Quiesce], Phase::Quiescing)],
    );
}

#[test]
fn an_asked_suspend_gives_up_at_its_deadline() {
    let asked: Step = (Input::SuspendAsked, &[Quiesce], Phase::Quiescing);
    story(
        Phase::Running,
        &[
            asked,
            (Input::Quiesced(false), &[RetrySoon], Phase::Running),
            (Input::SuspendDeadline, &[BUSY], Phase::Running),
            // Its own idleness still counts.
            (Input::Idle, &[Quiesce], Phase::Quiescing),
            (Input::Quiesced(false), &[RetrySoon], Phase::Running),
        ],
    );
    // An attempt under way is the last one, and may still succeed.
    story(
        Phase::Running,
        &[
            asked,
            (Input::SuspendDeadline, &[], Phase::Quiescing),
            (Input::Quiesced(false), &[BUSY, RetrySoon], Phase::Running),
        ],
    );
    story(
        Phase::Running,
        &[
            asked,
            (Input::Quiesced(true), &[Suspend], Phase::Saving),
            (Input::SuspendDeadline, &[], Phase::Saving),
            (Input::Saved(true), &[TellSuspended], Phase::Leaving),
            (SLEPT, &[AnswerSuspend(Answer::Done)], ASLEEP),
        ],
    );
}

#[test]
fn a_vm_that_dies_ends_its_sessions() {
    story(Phase::Running, &[(CRASHED, &[END], COLD), (Input::Wake, &[Spawn], Phase::Resuming)]);
    story(
        Phase::Running,
        &[
            (Input::Idle, &[Quiesce], Phase::Quiescing),
            (CRASHED, &[END], COLD),
            (Input::Quiesced(true), &[], COLD),
        ],
    );
    story_from_saving(&[(CRASHED, &[END], COLD), (Input::Saved(false), &[], COLD)]);
}

#[test]
fn a_vm_that_dies_while_someone_waits_is_woken_again() {
    story_from_saving(&[
        (Input::Wake, &[Cancel], Phase::Saving),
        (CRASHED, &[EndSessions(End::Died), Spawn], Phase::Resuming),
    ]);
}

#[test]
fn a_snapshot_whose_answer_was_lost_keeps_its_sessions() {
    let died = Input::Exited { rest: Rest::Suspended, failed: true };
    story_from_saving(&[(died, &[TellSuspended], ASLEEP)]);
}

#[test]
fn a_wake_that_fails_is_an_error_and_the_next_one_tries_again() {
    story(
        ASLEEP,
        &[
            (Input::Wake, &[Spawn], Phase::Resuming),
            (CRASHED, &[AnswerWakers(Answer::Failed)], BROKEN),
            (Input::Wake, &[Spawn], Phase::Resuming),
            (Input::WakeFailed, &[Kill], Phase::Resuming),
            (SLEPT, &[AnswerWakers(Answer::Failed)], BROKEN),
            (Input::Wake, &[Spawn], Phase::Resuming),
            (Input::Ready, &[OK], Phase::Running),
        ],
    );
}

#[test]
fn a_vm_that_ends_before_it_is_ready_is_started_again_but_not_for_ever() {
    story(
        ASLEEP,
        &[
            (Input::Wake, &[Spawn], Phase::Resuming),
            (STOPPED, &[Spawn], Phase::Resuming),
            (STOPPED, &[Spawn], Phase::Resuming),
            (STOPPED, &[AnswerWakers(Answer::Failed)], BROKEN),
        ],
    );
}

#[test]
fn a_delete_ends_everything_from_every_phase() {
    let words = [EndSessions(End::Deleted), AnswerWakers(Answer::Gone), AnswerSuspend(Answer::Gone)];
    for phase in [ASLEEP, COLD, BROKEN] {
        let mut machine = Machine::new(phase);
        assert_eq!(machine.step(Input::DeleteAsked), [&words[..], &[Remove]].concat());
        assert_eq!(machine.step(Input::Wake), [AnswerWakers(Answer::Gone)]);
        assert_eq!(machine.step(Input::Removed(true)), [AnswerDelete(Answer::Done)]);
        assert_eq!(machine.phase(), Phase::Gone);
    }
    for phase in [Phase::Resuming, Phase::Running, Phase::Quiescing, Phase::Saving, Phase::Leaving] {
        let mut machine = Machine::new(phase);
        assert_eq!(machine.step(Input::DeleteAsked), [&words[..], &[Kill]].concat());
        assert_eq!(machine.state(), State::Deleting);
        assert_eq!(machine.step(Input::Wake), [AnswerWakers(Answer::Gone)]);
        assert_eq!(machine.step(Input::Ready), []);
        assert_eq!(machine.step(Input::Saved(true)), []);
        assert_eq!(machine.step(CRASHED), [Remove]);
        assert_eq!(machine.step(Input::Removed(true)), [AnswerDelete(Answer::Done)]);
    }
}

#[test]
fn a_removal_that_failed_can_be_asked_again() {
    let mut machine = Machine::new(ASLEEP);
    machine.step(Input::DeleteAsked);
    assert_eq!(machine.step(Input::Removed(false)), [AnswerDelete(Answer::Failed)]);
    assert_eq!(machine.state(), State::Deleting);
    assert_eq!(machine.step(Input::Wake), [AnswerWakers(Answer::Gone)]);
    assert_eq!(machine.step(Input::DeleteAsked), [Remove]);
    assert_eq!(machine.step(Input::DeleteAsked), []);
    assert_eq!(machine.step(Input::Removed(true)), [AnswerDelete(Answer::Done)]);
}

#[test]
fn the_servers_end_suspends_without_the_sessions_it_can_no_longer_hold() {
    story(
        Phase::Running,
        &[
            (Input::ShutDown, &[Quiesce], Phase::Quiescing),
            (Input::Quiesced(false), &[RetrySoon], Phase::Running),
            (Input::Wake, &[AnswerWakers(Answer::ShuttingDown)], Phase::Running),
            (Input::Retry, &[Quiesce], Phase::Quiescing),
            (Input::Spoke, &[], Phase::Quiescing),
            (Input::Quiesced(true), &[EndSessions(End::ShutDown), Suspend], Phase::Saving),
            (Input::Saved(true), &[TellSuspended], Phase::Leaving),
            (SLEPT, &[], ASLEEP),
            (Input::Wake, &[AnswerWakers(Answer::ShuttingDown)], ASLEEP),
        ],
    );
}

#[test]
fn the_servers_end_stops_what_does_not_become_idle_in_time() {
    let stop: &[Effect] = &[EndSessions(End::ShutDown), Stop];
    story(
        Phase::Running,
        &[
            (Input::ShutDown, &[Quiesce], Phase::Quiescing),
            (Input::Quiesced(false), &[RetrySoon], Phase::Running),
            (Input::ShutDownDeadline, stop, Phase::Leaving),
            (STOPPED, &[], COLD),
        ],
    );
    story(
        Phase::Running,
        &[
            (Input::ShutDown, &[Quiesce], Phase::Quiescing),
            (Input::ShutDownDeadline, &[], Phase::Quiescing),
            (Input::Quiesced(false), stop, Phase::Leaving),
        ],
    );
}

#[test]
fn the_servers_end_waits_for_a_wake_under_way() {
    story(
        ASLEEP,
        &[
            (Input::Wake, &[Spawn], Phase::Resuming),
            (Input::ShutDown, &[AnswerWakers(Answer::ShuttingDown)], Phase::Resuming),
            (Input::Ready, &[Quiesce], Phase::Quiescing),
        ],
    );
}

#[test]
fn a_cut_kills_what_is_alive_and_only_that() {
    for phase in [Phase::Resuming, Phase::Running, Phase::Quiescing, Phase::Saving, Phase::Leaving] {
        story(phase, &[(Input::Cut, &[EndSessions(End::ShutDown), Kill], Phase::Leaving), (CRASHED, &[], COLD)]);
    }
    for phase in [ASLEEP, COLD, BROKEN, Phase::Gone] {
        story(phase, &[(Input::Cut, &[], phase)]);
    }
}

/// Whatever comes in whatever order: never two VMs, never a pooler left stopped, nobody left waiting at rest.
#[test]
fn no_order_of_inputs_breaks_the_rules() {
    let inputs = [
        Input::Wake,
        Input::Spoke,
        Input::SuspendAsked,
        Input::SuspendDeadline,
        Input::Idle,
        Input::Retry,
        Input::Ready,
        Input::Quiesced(true),
        Input::Quiesced(false),
        Input::Saved(true),
        Input::Saved(false),
        Input::SaveFailed,
        SLEPT,
        STOPPED,
        CRASHED,
        Input::WakeFailed,
        Input::DeleteAsked,
        Input::Removed(true),
        Input::Removed(false),
        Input::ShutDown,
        Input::ShutDownDeadline,
        Input::Cut,
    ];
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..20_000 {
        let mut machine = Machine::new(ASLEEP);
        let (mut alive, mut waiting, mut stopped) = (false, false, false);
        let (mut asked, mut saving, mut removing) = (false, false, false);
        for _ in 0..30 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let mut input = inputs[(seed % inputs.len() as u64) as usize];
            // The pooler answers at once.
            if std::mem::take(&mut asked) {
                input = Input::Quiesced(seed & 0x1000 != 0);
            } else if matches!(input, Input::Quiesced(_)) {
                continue;
            }
            // Other answers come only to what was asked, and a process ends only where one is.
            match input {
                Input::Saved(_) if !std::mem::take(&mut saving) || !alive => continue,
                Input::Removed(_) if !std::mem::take(&mut removing) => continue,
                Input::Exited { .. } if !std::mem::take(&mut alive) => continue,
                Input::Ready | Input::Idle | Input::WakeFailed if !alive => continue,
                _ => {}
            }
            waiting |= input == Input::Wake;
            stopped |= input == Input::Quiesced(true);
            for effect in machine.step(input) {
                match effect {
                    Spawn => assert!(!std::mem::replace(&mut alive, true), "two VMs after {input:?}"),
                    Quiesce => asked = true,
                    Suspend => saving = true,
                    Remove => {
                        assert!(!alive, "files removed under a VM");
                        removing = true;
                    }
                    AnswerWakers(_) => waiting = false,
                    Release | TellSuspended | EndSessions(_) => stopped = false,
                    _ => {}
                }
            }
            match machine.phase() {
                Phase::Rest(_) | Phase::Gone => assert!(!waiting, "left waiting at rest after {input:?}"),
                Phase::Running => {
                    assert!(!waiting, "left waiting while running after {input:?}");
                    assert!(!stopped, "pooler left stopped after {input:?}");
                }
                _ => {}
            }
        }
    }
}

#[test]
fn a_suspend_that_fails_is_answered_before_its_deadline_and_tried_again_later() {
    story_from_saving(&[
        (Input::SuspendAsked, &[], Phase::Saving),
        (Input::SaveFailed, &[Release, BUSY, RetrySoon], Phase::Running),
        // Its own idleness is not given up.
        (Input::Retry, &[ListenForIdle], Phase::Running),
        (Input::Idle, &[Quiesce], Phase::Quiescing),
        (Input::Quiesced(true), &[Suspend], Phase::Saving),
        (Input::SaveFailed, &[Release, RetrySoon], Phase::Running),
    ]);
    // At the server's end Postgres is shut down instead.
    story_from_saving(&[
        (Input::ShutDown, &[], Phase::Saving),
        (Input::SaveFailed, &[Release, EndSessions(End::ShutDown), Stop], Phase::Leaving),
        (STOPPED, &[], COLD),
    ]);
    // Overtaken by a death.
    story_from_saving(&[(CRASHED, &[END], COLD), (Input::SaveFailed, &[], COLD)]);
}

const RESTARTED: Effect = EndSessions(End::Restarted);
const GONE_COLD: Input = Input::Discarded { rest: Rest::Stopped, done: true };

#[test]
fn a_restart_ends_sessions_and_the_snapshot_and_starts_nothing() {
    story(
        Phase::Running,
        &[
            (Input::StopAsked, &[RESTARTED, Stop], Phase::Leaving),
            (STOPPED, &[RESTARTED, Discard], Phase::Leaving),
            (GONE_COLD, &[AnswerStop(Answer::Done)], COLD),
        ],
    );
    story(ASLEEP, &[(Input::StopAsked, &[RESTARTED, Discard], Phase::Leaving), (GONE_COLD, &[AnswerStop(Answer::Done)], COLD)]);
    story_from_saving(&[
        (Input::StopAsked, &[Cancel], Phase::Saving),
        (Input::Saved(false), &[Release, RESTARTED, Stop], Phase::Leaving),
    ]);
    // Too late to call it off: what was saved is discarded.
    story_from_saving(&[
        (Input::StopAsked, &[Cancel], Phase::Saving),
        (Input::Saved(true), &[TellSuspended], Phase::Leaving),
        (SLEPT, &[RESTARTED, Discard], Phase::Leaving),
        (GONE_COLD, &[AnswerStop(Answer::Done)], COLD),
    ]);
}

#[test]
fn who_wants_a_database_that_is_restarted_gets_the_next_start() {
    story(
        ASLEEP,
        &[
            (Input::Wake, &[Spawn], Phase::Resuming),
            (Input::StopAsked, &[], Phase::Resuming),
            (Input::Ready, &[RESTARTED, Stop], Phase::Leaving),
            (STOPPED, &[RESTARTED, Discard], Phase::Leaving),
            (GONE_COLD, &[AnswerStop(Answer::Done), Spawn], Phase::Resuming),
            (Input::Ready, &[OK], Phase::Running),
        ],
    );
    story(
        ASLEEP,
        &[
            (Input::StopAsked, &[RESTARTED, Discard], Phase::Leaving),
            (Input::Wake, &[], Phase::Leaving),
            (Input::Discarded { rest: Rest::Suspended, done: false }, &[AnswerStop(Answer::Failed), Spawn], Phase::Resuming),
        ],
    );
}

#[test]
fn a_delete_goes_before_a_restart() {
    let mut machine = Machine::new(ASLEEP);
    machine.step(Input::StopAsked);
    machine.step(Input::DeleteAsked);
    assert_eq!(machine.step(GONE_COLD), [AnswerStop(Answer::Gone), Remove]);
    let mut machine = Machine::new(Phase::Running);
    machine.step(Input::StopAsked);
    machine.step(Input::DeleteAsked);
    assert_eq!(machine.step(STOPPED), [AnswerStop(Answer::Gone), Remove]);
    assert_eq!(machine.step(Input::StopAsked), [AnswerStop(Answer::Gone)]);
}
