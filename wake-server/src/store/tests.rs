mod platter;

use proptest::prelude::*;
use tempfile::TempDir;
use vmstation_protocol::{Activity, Port, Report, SCHEMA, Stage, StageDocument, Transport, WakeOutcome, Waking};

use self::platter::Platter;
use super::*;
use crate::presence::{Cause, Life, Standing};

/// Bytes of the file with 10,000 nodes and all the history that is kept.
const BOUND: u64 = 16 << 20;

fn now() -> Timestamp {
    "2026-06-01T12:00:00Z".parse().unwrap()
}

fn ago(seconds: u64) -> Timestamp {
    before(now(), Duration::from_secs(seconds))
}

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn saved(node: &str, standing: Standing) -> Saved {
    Saved {
        node: name(node),
        standing,
        since: Some(ago(60)),
        life: Some(Life {
            boot_id: "0b9e4a3c-9d8e-4f1e-8a51-7c2f6a1d3b4e".into(),
            resumes: 3,
        }),
        report: Some(Report {
            schema: SCHEMA,
            node: name(node),
            boot_id: "0b9e4a3c-9d8e-4f1e-8a51-7c2f6a1d3b4e".into(),
            resumes: 3,
            activity: Activity::Busy,
            reasons: vec!["CPU 37.5 % (threshold 10 %)".into()],
            ports: vec![Port {
                interface: "enp1s0".into(),
                mac: "52:54:00:12:34:56".parse().unwrap(),
                waking: Waking::Armed,
            }],
            role: None,
            version: "0.1.0".into(),
        }),
        reported: Some(ago(30)),
    }
}

fn wake(node: &str, began: Timestamp) -> WakeDocument {
    WakeDocument {
        schema: SCHEMA,
        node: name(node),
        mac: "52:54:00:12:34:56".parse().unwrap(),
        began: began.to_string(),
        outcome: WakeOutcome::Awake,
        stages: vec![StageDocument {
            stage: Stage::FrameSent,
            at_ms: 0.5,
        }],
        transport: Some(Transport::Raw),
        interface: Some("br0".into()),
        packets: 3,
        message: "awake after 7.2 s: its agent reports from after a resume".into(),
    }
}

fn change(node: &str, to: NodeState, since: Timestamp) -> Change {
    Change {
        node: name(node),
        from: NodeState::Unknown,
        to,
        since,
        cause: Cause::Reported,
    }
}

fn nodes(nodes: Vec<Saved>) -> Batch {
    Batch {
        nodes,
        ..Batch::default()
    }
}

#[test]
fn what_is_written_is_there_after_a_restart() {
    let folder = TempDir::new().unwrap();
    let store = Store::new(folder.path().join("state"));
    assert!(store.load(now()).unwrap().nodes.is_empty());
    let batch = Batch {
        nodes: vec![saved("a", Standing::Asleep), saved("b", Standing::Awake)],
        changes: vec![
            change("a", NodeState::Awake, ago(100)),
            change("a", NodeState::Asleep, ago(60)),
            change("b", NodeState::Gone, ago(50)),
            change("b", NodeState::Awake, ago(50)),
        ],
        wakes: vec![wake("a", ago(200)), wake("b", ago(90)), wake("a", ago(90))],
        ..Batch::default()
    };
    store.write(batch, now()).unwrap();
    drop(store);

    let store = Store::new(folder.path().join("state"));
    let loaded = store.load(now()).unwrap();
    assert_eq!(
        loaded.nodes,
        [saved("a", Standing::Asleep), saved("b", Standing::Awake)]
    );
    assert_eq!(loaded.last_wakes[&name("a")], wake("a", ago(90)));
    assert!(loaded.warnings.is_empty());
    assert_eq!(store.wakes(2).unwrap(), [wake("a", ago(90)), wake("b", ago(90))]);
    assert_eq!(
        store.wakes_of(&name("a"), 9).unwrap(),
        [wake("a", ago(90)), wake("a", ago(200))]
    );
    let timelines = store.timelines().unwrap();
    let states = |node| timelines[&name(node)].iter().map(|point| point.to).collect::<Vec<_>>();
    assert_eq!(states("a"), [NodeState::Awake, NodeState::Asleep]);
    assert_eq!(states("b"), [NodeState::Gone, NodeState::Awake]);
    assert_eq!(store.timeline(&name("a")).unwrap(), timelines[&name("a")]);

    let forget = Batch {
        forgotten: vec![name("a")],
        ..Batch::default()
    };
    store.write(forget, now()).unwrap();
    assert_eq!(store.load(now()).unwrap().nodes, [saved("b", Standing::Awake)]);
    assert!(store.timeline(&name("a")).unwrap().is_empty());
    assert_eq!(store.timeline(&name("b")).unwrap().len(), 2);
}

#[test]
fn a_second_server_does_not_get_the_file() {
    let folder = TempDir::new().unwrap();
    let store = Store::new(folder.path());
    store.load(now()).unwrap();
    let second = Store::new(folder.path());
    assert!(matches!(second.load(now()), Err(StoreError::InUse { .. })));
    assert!(!folder.path().join("wake.redb.corrupt").exists());
}

#[test]
fn history_is_as_old_as_it_may_be() {
    let day = 24 * 3600;
    let folder = TempDir::new().unwrap();
    let store = Store::new(folder.path());
    let batch = Batch {
        changes: vec![
            change("a", NodeState::Awake, ago(30 * day)),
            change("a", NodeState::Asleep, ago(8 * day)),
            change("a", NodeState::Awake, ago(6 * day)),
            change("a", NodeState::Asleep, after(now(), Duration::from_hours(1000))),
        ],
        wakes: vec![
            wake("old", ago(91 * day)),
            wake("kept", ago(89 * day)),
            wake("ahead", after(now(), Duration::from_hours(1000))),
        ],
        ..Batch::default()
    };
    store.write(batch, now()).unwrap();
    assert_eq!(store.wakes(9).unwrap(), [wake("kept", ago(89 * day))]);
    let at: Vec<Timestamp> = store
        .timeline(&name("a"))
        .unwrap()
        .iter()
        .map(|point| point.at)
        .collect();
    assert_eq!(
        at,
        [ago(8 * day), ago(6 * day)],
        "what it was when the 7 days began is known"
    );
    // Of a node that is heard no more, too.
    let later = after(now(), Duration::from_hours(20 * 24));
    store.load(later).unwrap();
    assert!(store.wakes(9).unwrap().is_empty());
    assert_eq!(store.timeline(&name("a")).unwrap().len(), 1);
}

#[test]
fn a_node_that_flaps_fills_nothing() {
    let folder = TempDir::new().unwrap();
    let store = Store::new(folder.path());
    let flapping = (0..2 * TRANSITIONS as u64).rev();
    let batch = Batch {
        changes: flapping
            .map(|seconds| change("a", NodeState::Gone, ago(seconds)))
            .collect(),
        ..Batch::default()
    };
    store.write(batch, now()).unwrap();
    let timeline = store.timeline(&name("a")).unwrap();
    assert_eq!(timeline.len(), TRANSITIONS);
    assert_eq!(timeline.last().unwrap().at, now());
}

#[test]
fn the_file_stays_small() {
    let folder = TempDir::new().unwrap();
    let store = Store::new(folder.path());
    for part in 0..10_u64 {
        let each = |node: u64| format!("worker-{node:05}");
        let of_part = part * 1000..(part + 1) * 1000;
        let batch = Batch {
            nodes: of_part
                .clone()
                .map(|node| saved(&each(node), Standing::Asleep))
                .collect(),
            changes: of_part
                .clone()
                .flat_map(|node| (0..4).map(move |at| change(&each(node), NodeState::Awake, ago(at))))
                .collect(),
            wakes: (0..2)
                .flat_map(|at| of_part.clone().map(move |node| wake(&each(node), ago(at))))
                .collect(),
            ..Batch::default()
        };
        store.write(batch, now()).unwrap();
    }
    assert_eq!(store.load(now()).unwrap().nodes.len(), 10_000);
    assert_eq!(store.wakes(usize::MAX).unwrap().len(), WAKES);
    drop(store);
    let size = fs::metadata(folder.path().join(FILE)).unwrap().len();
    assert!(size < BOUND, "{size} bytes");
}

#[test]
fn what_cannot_be_understood_is_set_aside_and_told() {
    let written = |folder: &Path| {
        let store = Store::new(folder);
        store.write(nodes(vec![saved("a", Standing::Asleep)]), now()).unwrap();
        drop(store);
        fs::read(folder.join(FILE)).unwrap()
    };
    let garbage = |_: &Path| b"garbage, and more of it than a header is long".repeat(1000);
    let cut = |folder: &Path| written(folder).drain(..5000).collect();
    let newer = |folder: &Path| {
        written(folder);
        let database = Database::open(folder.join(FILE)).unwrap();
        let transaction = database.begin_write().unwrap();
        let version = redb::TableDefinition::<&str, u64>::new("meta");
        transaction.open_table(version).unwrap().insert("version", 2).unwrap();
        transaction.commit().unwrap();
        drop(database);
        fs::read(folder.join(FILE)).unwrap()
    };
    let another_program = |folder: &Path| {
        let database = Database::create(folder.join(FILE)).unwrap();
        let transaction = database.begin_write().unwrap();
        let table = redb::TableDefinition::<u64, u64>::new("meta");
        transaction.open_table(table).unwrap().insert(1, 2).unwrap();
        transaction.commit().unwrap();
        drop(database);
        fs::read(folder.join(FILE)).unwrap()
    };
    type Make<'a> = &'a dyn Fn(&Path) -> Vec<u8>;
    let makes: [(&str, Make<'_>); 4] = [
        ("garbage", &garbage),
        ("cut", &cut),
        ("newer", &newer),
        ("another", &another_program),
    ];
    for (what, make) in makes {
        let folder = TempDir::new().unwrap();
        let bytes = make(folder.path());
        fs::write(folder.path().join(FILE), &bytes).unwrap();
        let store = Store::new(folder.path());
        let loaded = store.load(now()).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert!(loaded.nodes.is_empty());
        assert!(
            loaded.warnings[0].contains("set aside"),
            "{what}: {:?}",
            loaded.warnings
        );
        let aside = fs::read(folder.path().join("wake.redb.corrupt")).unwrap();
        // Looking into it may have added a page.
        assert!(aside.len() >= bytes.len() && aside[..8] == bytes[..8], "{what}");
        store.write(nodes(vec![saved("b", Standing::Awake)]), now()).unwrap();
        assert_eq!(store.load(now()).unwrap().nodes.len(), 1);
    }
}

#[test]
fn f3_without_a_folder_it_goes_on_in_memory() {
    let folder = TempDir::new().unwrap();
    let state = folder.path().join("state");
    fs::write(&state, "in the way").unwrap();
    let store = Store::new(&state);
    let error = store.load(now()).unwrap_err();
    assert!(matches!(error, StoreError::Folder { .. }), "{error:?}");
    store
        .write(nodes(vec![saved("a", Standing::Asleep)]), now())
        .unwrap_err();
    store
        .write(nodes(vec![saved("b", Standing::Asleep)]), now())
        .unwrap_err();
    fs::remove_file(&state).unwrap();
    store.write(Batch::default(), now()).unwrap();
    assert_eq!(store.load(now()).unwrap().nodes.len(), 2);
}

#[test]
fn f3_a_full_or_read_only_disk_is_told_and_got_over() {
    for error in [io::ErrorKind::StorageFull, io::ErrorKind::ReadOnlyFilesystem] {
        let folder = TempDir::new().unwrap();
        let disk = Platter::default();
        let store = Store::on(folder.path(), disk.clone());
        store.write(nodes(vec![saved("a", Standing::Awake)]), now()).unwrap();
        disk.refuse(Some(error));
        for standing in [Standing::Awake, Standing::Asleep] {
            let failure = store.write(nodes(vec![saved("b", standing)]), now()).unwrap_err();
            let StoreError::File {
                what: "write" | "open",
                source,
                ..
            } = &failure
            else {
                panic!("{failure:?}");
            };
            assert!(!source.to_string().is_empty());
        }
        disk.refuse(None);
        store.write(nodes(vec![saved("a", Standing::Gone)]), now()).unwrap();
        let loaded = store.load(now()).unwrap();
        assert_eq!(loaded.nodes, [saved("a", Standing::Gone), saved("b", Standing::Asleep)]);
        assert!(
            loaded.warnings.is_empty(),
            "a full disk is no damage: {:?}",
            loaded.warnings
        );
    }
}

#[test]
fn what_waits_for_a_disk_is_bounded() {
    let mut pending = Pending::default();
    for _ in 0..3 {
        pending.add(Batch {
            wakes: vec![wake("a", now()); WAKES / 2 + 1],
            changes: vec![change("a", NodeState::Gone, now()); 60_000],
            ..Batch::default()
        });
    }
    assert_eq!((pending.wakes.len(), pending.changes.len()), (WAKES, 100_000));
}

/// Both nodes, and the wake, of one round.
fn round(number: u64) -> Batch {
    let of_round = |node| {
        let mut saved = saved(node, Standing::Awake);
        saved.since = Some(Timestamp::from_second(i64::try_from(number).unwrap()).unwrap());
        saved
    };
    Batch {
        nodes: vec![of_round("a"), of_round("b")],
        wakes: vec![wake("a", ago(1000 - number))],
        ..Batch::default()
    }
}

proptest! {
    #[test]
    fn a_file_with_bytes_turned_is_read_or_set_aside(at in proptest::collection::vec((any::<prop::sample::Index>(), 1..=255_u8), 1..8)) {
        let folder = TempDir::new().unwrap();
        let disk = Platter::default();
        Store::on(folder.path(), disk.clone()).write(round(0), now()).unwrap();
        {
            let bytes = &mut disk.state().seen;
            for (index, by) in at {
                let length = bytes.len();
                bytes[index.index(length)] ^= by;
            }
        }
        fs::write(folder.path().join(FILE), &disk.state().seen).unwrap();
        let store = Store::new(folder.path());
        let loaded = store.load(now()).unwrap();
        prop_assert!(loaded.nodes == round(0).nodes || !loaded.warnings.is_empty());
        store.write(round(1), now()).unwrap();
    }

    #[test]
    fn f1_a_power_cut_leaves_what_was_before_or_after(
        operations in 0..60_usize,
        kept in proptest::collection::vec(any::<bool>(), 1..20),
        torn in 0..8192_usize,
    ) {
        let folder = TempDir::new().unwrap();
        let disk = Platter::default();
        let store = Store::on(folder.path(), disk.clone());
        store.write(round(0), now()).unwrap();
        disk.cut_after(operations);
        let mut done = 0;
        for number in 1..20 {
            if store.write(round(number), now()).is_err() {
                break;
            }
            done = number;
        }
        prop_assert!(disk.was_cut(), "the power never went");
        let after = Store::on(folder.path(), disk.after_the_cut(&kept, torn));
        let loaded = after.load(now()).unwrap();
        prop_assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
        let is_old = loaded.nodes == round(done).nodes;
        prop_assert!(is_old || loaded.nodes == round(done + 1).nodes, "after {done}: {:?}", loaded.nodes);
        let wakes = u64::try_from(after.wakes(99).unwrap().len()).unwrap();
        prop_assert_eq!(wakes, if is_old { done + 1 } else { done + 2 });
    }
}
