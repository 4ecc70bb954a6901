//! When the idle kernel looks out before it halts.

#[path = "../../src/idle/pace.rs"]
mod pace;

use pace::Pace;

/// An exit takes 100 ticks on the machine of these tests.
fn pace(waits: &[u64]) -> Pace {
    waits.iter().fold(Pace::NEW.exit_took(170).exit_took(100).exit_took(130), |pace, &ticks| pace.waited(ticks))
}

#[test]
fn an_idle_guest_halts_at_once() {
    assert_eq!(pace(&[]).patience(), 0);
    assert_eq!(pace(&[1_000_000; 5]).patience(), 0);
}

#[test]
fn after_short_waits_it_looks_out_for_two_exits() {
    assert_eq!(pace(&[250; 2]).patience(), 0);
    assert_eq!(pace(&[250; 3]).patience(), 200);
    assert_eq!(pace(&[400; 3]).patience(), 200, "a halt and the exit after it are in this");
    assert_eq!(pace(&[401; 3]).patience(), 0);
}

#[test]
fn a_load_that_ends_costs_a_few_looks_and_no_more() {
    let mut pace = pace(&[50; 1000]);
    let mut looks = 0;
    while pace.patience() > 0 {
        pace = pace.waited(1_000_000);
        looks += 1;
    }
    assert_eq!(looks, 6);
}

#[test]
fn it_does_not_pay_if_most_waits_are_long() {
    let mut pace = pace(&[]);
    let mut looks = 0;
    for _ in 0..100 {
        for ticks in [50, 1000, 1000] {
            pace = pace.waited(ticks);
            looks += u32::from(pace.patience() > 0);
        }
    }
    assert_eq!(looks, 0);
}

#[test]
fn without_a_timed_exit_nothing_is_known() {
    assert_eq!([0; 9].into_iter().fold(Pace::NEW, Pace::waited).patience(), 0);
}
