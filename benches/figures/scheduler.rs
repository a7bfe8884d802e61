//! What a context switch costs with programs on `sched_switch`: two threads hand a byte to and fro through pipes, as
//! `perf bench sched pipe` does.

use std::{
    io::{PipeReader, PipeWriter, Read as _, Write as _, pipe},
    thread,
};

use anyhow::Result;

use crate::{
    figure::{Figure, Goal},
    kernel::{Attached, Hook, Object},
    measure::{added, column, estimate, interleaved, nanos_each, pin},
};

const SWITCH: Hook<'_> = Hook::Tracepoint("sched_switch");
const IDLE: Hook<'_> = Hook::Tracepoint("cpu_idle");

/// Where the two threads run.
#[derive(Clone, Copy)]
pub(crate) enum Place {
    /// On one CPU, which never goes idle: switches and nothing else.
    OneCpu,
    /// On two: each waits idle for the other.
    TwoCpus,
}

impl Place {
    const fn cpus(self) -> [usize; 2] {
        match self {
            Self::OneCpu => [0, 0],
            Self::TwoCpus => [0, 1],
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::OneCpu => "both threads on one CPU",
            Self::TwoCpus => "a CPU each, idle in between",
        }
    }
}

/// Two threads; the other one ends with this value.
pub(crate) struct PingPong {
    there: PipeWriter,
    back: PipeReader,
}

impl PingPong {
    pub(crate) fn new(place: Place) -> Result<Self> {
        let [own, other] = place.cpus();
        anyhow::ensure!(pin(own), "this machine has no CPU {own}");
        let (mut hears, there) = pipe()?;
        let (back, mut says) = pipe()?;
        let (pinned, is_pinned) = std::sync::mpsc::channel();
        thread::spawn(move || {
            // Nobody waits for an answer that cannot be given.
            let _gone = pinned.send(pin(other));
            let mut byte = [0];
            while hears.read_exact(&mut byte).is_ok() && says.write_all(&byte).is_ok() {}
        });
        anyhow::ensure!(is_pinned.recv()?, "this machine has no CPU {other}");
        Ok(Self { there, back })
    }

    /// There and back, two switches each.
    pub(crate) fn rounds(&mut self, count: usize) {
        let mut byte = [0];
        for _ in 0..count {
            self.there.write_all(&byte).expect("the other thread listens");
            self.back.read_exact(&mut byte).expect("the other thread answers");
        }
    }

    /// Time of one switch, after a run-up.
    pub(crate) fn nanos_per_switch(&mut self, rounds: usize) -> f64 {
        self.rounds(rounds / 8);
        nanos_each(rounds * 2, || self.rounds(rounds))
    }
}

/// The figures of this section.
pub(crate) fn figures() -> Result<Vec<Figure>> {
    let mut figures = at(Place::OneCpu, 250, 2000)?;
    match at(Place::TwoCpus, 150, 200) {
        Ok(more) => figures.extend(more),
        Err(error) => figures.push(Figure::missing("scheduler", Place::TwoCpus.words(), &error)),
    }
    Ok(figures)
}

fn at(place: Place, rounds: usize, round_trips: usize) -> Result<Vec<Figure>> {
    const NOTHING: usize = 0;
    const ALWAYS: usize = 1;
    const EMPTY: usize = 2;
    const KTIME: usize = 3;
    const HASH: usize = 4;
    const IDLE_ALONE: usize = 5;
    let (mut agent, mut bench) = (Object::agent()?, Object::bench()?);
    let mut attach = |variant: usize| -> Result<Vec<Attached>> {
        Ok(match variant {
            ALWAYS => vec![agent.attach("vms_sched", SWITCH)?, agent.attach("vms_idle", IDLE)?],
            EMPTY => vec![bench.attach("bench_raw_empty", SWITCH)?],
            KTIME => vec![bench.attach("bench_ktime", SWITCH)?],
            HASH => vec![bench.attach("bench_hash", SWITCH)?],
            IDLE_ALONE => vec![agent.attach("vms_idle", IDLE)?],
            _ => Vec::new(),
        })
    };
    // A program that cannot be attached is an error now, not in the middle.
    for variant in 0..6 {
        attach(variant)?;
    }
    let mut threads = PingPong::new(place)?;
    let rows = interleaved::<6>(rounds, |variant| {
        let _attached = attach(variant).expect("it could be attached before");
        threads.nanos_per_switch(round_trips)
    });
    let section = |what: &str| format!("{what} ({})", place.words());
    let mut figures = vec![Figure::new(
        "scheduler",
        &section("a switch with nothing attached"),
        "ns",
        estimate(&rows, column(NOTHING)),
    )];
    for (variant, what) in [
        (EMPTY, "added by an empty program"),
        (ALWAYS, "added by `always` (vms_sched, vms_idle)"),
        (IDLE_ALONE, "added by vms_idle alone"),
        (KTIME, "added by reading the clock at every switch"),
        (HASH, "added by a hash of tasks at every switch"),
    ] {
        figures.push(
            Figure::new(
                "scheduler",
                &section(what),
                "ns",
                estimate(&rows, added(variant, NOTHING)),
            )
            .plotted(),
        );
    }
    let ratio = |rounds: &[[f64; 6]]| added(ALWAYS, NOTHING)(rounds) / added(KTIME, NOTHING)(rounds);
    let ratio = Figure::new(
        "scheduler",
        &section("`always` / clock at every switch"),
        "",
        estimate(&rows, ratio),
    );
    figures.push(ratio.with_goal(Goal::AtMost(0.6)));
    let hash = |rounds: &[[f64; 6]]| added(ALWAYS, NOTHING)(rounds) / added(HASH, NOTHING)(rounds);
    figures.push(Figure::new(
        "scheduler",
        &section("`always` / hash of tasks"),
        "",
        estimate(&rows, hash),
    ));
    pin(0);
    Ok(figures)
}
