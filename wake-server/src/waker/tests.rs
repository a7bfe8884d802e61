use std::{
    future::{pending, ready},
    sync::Mutex,
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};
use vmstation_protocol::{Stage, Transport};

use super::*;
use crate::clock::wall_clock;

/// When a test hangs.
const LIMIT: Duration = Duration::from_secs(20);
const NEVER: Duration = Duration::from_hours(1);
const STAGGER: Duration = Duration::from_millis(200);

/// Everything is sent; answers are what the test says.
#[derive(Default)]
struct Studio {
    hears: Mutex<Option<mpsc::Sender<MacAddr>>>,
}

impl Air for Studio {
    fn send<'a>(&'a self, _node: &'a Node) -> BoxFuture<'a, Result<Sent, String>> {
        let sent = Sent {
            transport: Transport::Raw,
            interface: None,
            packets: 2,
            note: None,
        };
        Box::pin(ready(Ok(sent)))
    }

    fn answers(&self, _node: &Node) -> mpsc::Receiver<MacAddr> {
        let (tell, answers) = mpsc::channel(1);
        *self.hears.lock().unwrap() = Some(tell);
        answers
    }
}

/// The network takes its time, for ever.
struct Stuck;

impl Air for Stuck {
    fn send<'a>(&'a self, _node: &'a Node) -> BoxFuture<'a, Result<Sent, String>> {
        Box::pin(pending())
    }

    fn answers(&self, _node: &Node) -> mpsc::Receiver<MacAddr> {
        mpsc::channel(1).1
    }
}

fn card(last: u8) -> MacAddr {
    MacAddr::new([2, 0, 0, 0, 0, last]).unwrap()
}

fn plan(node: &Node, verify: bool, proof: Stage) -> WakePlan {
    WakePlan {
        node: node.name.clone(),
        macs: node.macs.clone(),
        resend: vec![Duration::ZERO, NEVER],
        deadline: 2 * NEVER,
        verify,
        proof: Some(proof),
        ready: false,
        answers: true,
        before: None,
    }
}

fn begin(air: &Arc<Studio>, node: &Node, verify: bool) -> WakeHandle {
    let nobody_reports = watch::channel(None).1;
    begin_to(air, node, verify, Stage::ArpReply, nobody_reports)
}

fn begin_to(
    air: &Arc<Studio>,
    node: &Node,
    verify: bool,
    proof: Stage,
    lives: watch::Receiver<Option<Life>>,
) -> WakeHandle {
    let air: Arc<dyn Air> = Arc::<Studio>::clone(air);
    start(
        air,
        node.clone(),
        plan(node, verify, proof),
        wall_clock(),
        lives,
        |_over| ready(()),
    )
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async { tokio::time::timeout(LIMIT, test).await.expect("the test hangs") });
}

/// The same with a clock that goes on when nothing else does. Only timers of the runtime go by it.
fn run_paused(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async { tokio::time::timeout(NEVER, test).await.expect("the test hangs") });
}

/// Nodes with different cards.
fn nodes(count: u16) -> Vec<Node> {
    let card = |number: u16| {
        let [high, low] = number.to_be_bytes();
        MacAddr::new([2, 0, 0, 1, high, low]).unwrap()
    };
    (0..count).map(|number| Node::bare(card(number))).collect()
}

/// When each was begun.
type Begins = Arc<Mutex<Vec<Instant>>>;

fn wake_noted(nodes: Vec<Node>, pace: &Pace, begins: &Begins) -> WakeAllHandle {
    let (air, begins) = (Arc::default(), Arc::clone(begins));
    wake_all(nodes, pace.clone(), true, move |node| {
        begins.lock().unwrap().push(Instant::now());
        Begun::Started(begin(&air, node, true))
    })
}

fn are_staggered(begins: &[Instant]) -> bool {
    begins.windows(2).all(|pair| pair[1] - pair[0] >= STAGGER)
}

#[test]
fn w9_hundreds_are_begun_one_by_one_and_all_of_them() {
    run_paused(async {
        let (count, begins) = (400, Begins::default());
        let all = wake_noted(nodes(count), &Pace::new(STAGGER), &begins);
        let mut progress = all.progress();
        let part = progress.wait_for(|(document, _)| document.nodes.len() > 100).await;
        assert!(part.unwrap().0.nodes.len() < 200, "progress is shown while it goes on");
        progress
            .wait_for(|(document, _)| document.nodes.len() == usize::from(count))
            .await
            .unwrap();
        let begins = begins.lock().unwrap();
        assert!(are_staggered(&begins), "{begins:?}");
        assert!(!all.is_over(), "none of them is proved");
    });
}

#[test]
fn w9_hundreds_that_are_called_off_end_and_no_more_begin() {
    run_paused(async {
        let begins = Begins::default();
        let all = wake_noted(nodes(400), &Pace::new(STAGGER), &begins);
        let mut progress = all.progress();
        progress
            .wait_for(|(document, _)| document.nodes.len() > 100)
            .await
            .unwrap();
        all.cancel();
        let (document, _) = progress.wait_for(|(_, is_over)| *is_over).await.unwrap().clone();
        let woken = document.nodes.len();
        assert!((101..200).contains(&woken), "{woken}");
        assert_eq!(begins.lock().unwrap().len(), woken);
        let is_cancelled = |wake: &WakeDocument| wake.outcome == WakeOutcome::Cancelled;
        assert!(document.nodes.iter().all(is_cancelled), "{document:?}");
    });
}

#[test]
fn w9_two_wakes_of_all_share_one_pace() {
    run_paused(async {
        let (pace, begins) = (Pace::new(STAGGER), Begins::default());
        let nodes = nodes(20);
        let (some, others) = nodes.split_at(10);
        let both = [some, others].map(|nodes| wake_noted(nodes.to_vec(), &pace, &begins));
        for all in &both {
            let mut progress = all.progress();
            progress
                .wait_for(|(document, _)| document.nodes.len() == 10)
                .await
                .unwrap();
        }
        let begins = begins.lock().unwrap();
        assert!(begins.len() == 20 && are_staggered(&begins), "{begins:?}");
    });
}

#[test]
fn a_wake_is_called_off_while_its_packets_are_on_their_way() {
    run(async {
        let node = Node::bare(card(1));
        let plan = plan(&node, true, Stage::ArpReply);
        let lives = watch::channel(None).1;
        let handle = start(Arc::new(Stuck), node, plan, wall_clock(), lives, |_over| ready(()));
        // It is sending by then.
        tokio::task::yield_now().await;
        handle.join(true);
        handle.cancel();
        let mut progress = handle.progress();
        let wake = progress.wait_for(|wake| is_decided(wake, true)).await.unwrap();
        assert_eq!((wake.outcome, wake.packets), (WakeOutcome::Cancelled, 0));
    });
}

#[test]
fn a_later_wish_for_proof_joins_the_wake() {
    run(async {
        let air = Arc::<Studio>::default();
        let handle = begin(&air, &Node::bare(card(1)), false);
        let mut progress = handle.progress();
        let sent = progress.wait_for(|wake| is_decided(wake, false)).await.unwrap().clone();
        assert_eq!((sent.outcome, sent.packets), (WakeOutcome::Sent, 2));
        handle.join(true);
        progress
            .wait_for(|wake| wake.outcome == WakeOutcome::Waking)
            .await
            .unwrap();
        let hears = air.hears.lock().unwrap().clone().unwrap();
        hears.send(card(1)).await.unwrap();
        let proved = progress.wait_for(|wake| is_decided(wake, true)).await.unwrap().clone();
        assert_eq!(proved.outcome, WakeOutcome::Awake);
        // The task is gone, and with it everything it held.
        hears.closed().await;
    });
}

#[test]
fn a_card_is_asked_at_once_when_its_agent_spoke_first() {
    run(async {
        let air = Arc::<Studio>::default();
        let (reports, lives) = watch::channel(None);
        let handle = begin_to(&air, &Node::bare(card(1)), true, Stage::AgentReport, lives);
        let mut progress = handle.progress();
        progress.wait_for(|wake| wake.stages.len() == 1).await.unwrap();
        let first = air.hears.lock().unwrap().clone().unwrap();
        reports.send_replace(Some(Life {
            boot_id: "boot".into(),
            resumes: 1,
        }));
        first.closed().await;
        let again = air.hears.lock().unwrap().clone().unwrap();
        again.send(card(1)).await.unwrap();
        let proved = progress.wait_for(|wake| is_decided(wake, true)).await.unwrap().clone();
        let stages: Vec<_> = proved.stages.iter().map(|stage| stage.stage).collect();
        assert_eq!(stages, [Stage::FrameSent, Stage::ArpReply, Stage::AgentReport]);
        assert_eq!(proved.outcome, WakeOutcome::Awake);
    });
}

#[test]
fn who_asks_for_no_proof_does_not_wait_for_that_of_another() {
    run(async {
        let handle = begin(&Arc::default(), &Node::bare(card(1)), true);
        let mut progress = handle.progress();
        let wake = progress.wait_for(|wake| is_decided(wake, false)).await.unwrap().clone();
        assert_eq!(wake.outcome, WakeOutcome::Waking);
        handle.cancel();
        let wake = progress.wait_for(|wake| is_decided(wake, true)).await.unwrap().clone();
        assert_eq!(wake.outcome, WakeOutcome::Cancelled);
    });
}

#[test]
fn f1_the_end_of_a_wake_is_told_once_it_is_kept() {
    run(async {
        let (keep, kept) = oneshot::channel::<()>();
        let (tell, told) = oneshot::channel();
        let node = Node::bare(card(1));
        let (plan, air) = (plan(&node, true, Stage::ArpReply), Arc::<Studio>::default());
        let lives = watch::channel(None).1;
        let handle = start(air, node, plan, wall_clock(), lives, |document| {
            tell.send(document.outcome).unwrap();
            async move { kept.await.unwrap() }
        });
        handle.cancel();
        assert_eq!(told.await.unwrap(), WakeOutcome::Cancelled);
        // Whatever else can run has run.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let mut progress = handle.progress();
        assert_eq!(
            progress.borrow().outcome,
            WakeOutcome::Waking,
            "nothing of it is kept yet"
        );
        keep.send(()).unwrap();
        progress.wait_for(|wake| is_decided(wake, true)).await.unwrap();
    });
}

#[test]
fn w9_a_wake_of_all_that_is_called_off_begins_no_more() {
    run(async {
        let air = Arc::<Studio>::default();
        let nodes = (1..4).map(|last| Node::bare(card(last))).collect();
        let all = wake_all(nodes, Pace::new(NEVER), true, move |node| {
            Begun::Started(begin(&air, node, true))
        });
        let mut progress = all.progress();
        progress
            .wait_for(|(document, _)| document.nodes.len() == 1)
            .await
            .unwrap();
        all.cancel();
        let (document, _) = progress.wait_for(|(_, is_over)| *is_over).await.unwrap().clone();
        let woken: Vec<_> = document.nodes.iter().map(|wake| (wake.mac, wake.outcome)).collect();
        assert_eq!(woken, [(card(1), WakeOutcome::Cancelled)]);
    });
}
