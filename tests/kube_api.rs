//! What the API server does that our programs depend on, pinned on whichever one there is: the trials of everything else run against the
//! fake, and these hold it to the real one. With `KUBEBUILDER_ASSETS` they ask the real one, otherwise the fake.
//!
//! Needs nothing. No packet leaves loopback.

#![expect(
    clippy::unwrap_used,
    reason = "a test with a harness of its own, which clippy does not take for one"
)]

#[path = "kube_api/access.rs"]
mod access;
#[path = "kube_api/asking.rs"]
mod asking;
#[expect(dead_code, reason = "other suites use more of it")]
#[path = "support/cluster.rs"]
mod cluster;
#[path = "kube_api/evictions.rs"]
mod evictions;
#[path = "kube_api/faults.rs"]
mod faults;
#[path = "kube_api/fixtures.rs"]
mod fixtures;
#[path = "kube_api/lists.rs"]
mod lists;
#[path = "kube_api/watches.rs"]
mod watches;
#[path = "kube_api/writes.rs"]
mod writes;

use futures_util::future::LocalBoxFuture;
use libtest_mimic::{Arguments, Trial};

use self::{
    Where::{Anywhere, OnTheFake},
    cluster::Cluster,
};

/// Which servers a trial is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    Anywhere,
    /// It orders faults, which the real one does not take.
    OnTheFake,
}

type Test = for<'a> fn(&'a Cluster) -> LocalBoxFuture<'a, ()>;

const TRIALS: [(&str, Where, Test); 50] = [
    ("a_list_is_of_the_fields_asked_for", Anywhere, |cluster| {
        Box::pin(lists::by_fields(cluster))
    }),
    ("a_field_that_cannot_be_selected_by_is_400", Anywhere, |cluster| {
        Box::pin(lists::by_an_unknown_field(cluster))
    }),
    ("a_list_is_of_the_labels_asked_for", Anywhere, |cluster| {
        Box::pin(lists::by_labels(cluster))
    }),
    ("a_list_comes_in_parts_of_one_version", Anywhere, |cluster| {
        Box::pin(lists::in_parts(cluster))
    }),
    ("a_list_is_not_older_than_what_is_known", Anywhere, |cluster| {
        Box::pin(lists::not_older_than(cluster))
    }),
    ("a_version_that_is_not_yet_is_504", Anywhere, |cluster| {
        Box::pin(lists::of_a_future_version(cluster))
    }),
    ("a_list_of_metadata_alone", Anywhere, |cluster| {
        Box::pin(lists::of_metadata_alone(cluster))
    }),
    ("what_is_missing_is_404_and_what_is_there_409", Anywhere, |cluster| {
        Box::pin(writes::missing_and_double(cluster))
    }),
    ("a_name_is_made_of_its_beginning", Anywhere, |cluster| {
        Box::pin(writes::names_are_made(cluster))
    }),
    ("a_write_of_what_is_stale_is_409", Anywhere, |cluster| {
        Box::pin(writes::stale_updates(cluster))
    }),
    (
        "k12_another_object_of_the_same_name_is_not_written",
        Anywhere,
        |cluster| Box::pin(writes::another_of_the_name(cluster)),
    ),
    ("a_write_that_changes_nothing_makes_no_version", Anywhere, |cluster| {
        Box::pin(writes::nothing_changes(cluster))
    }),
    ("status_is_written_by_its_subresource_alone", Anywhere, |cluster| {
        Box::pin(writes::status_is_apart(cluster))
    }),
    ("a_merge_patch_replaces_lists", Anywhere, |cluster| {
        Box::pin(writes::merge_patch(cluster))
    }),
    (
        "a_strategic_patch_merges_conditions_and_replaces_taints",
        Anywhere,
        |cluster| Box::pin(writes::strategic_patch(cluster)),
    ),
    ("a_json_patch_is_done_whole_or_not_at_all", Anywhere, |cluster| {
        Box::pin(writes::json_patch(cluster))
    }),
    ("an_unknown_patch_is_415", Anywhere, |cluster| {
        Box::pin(writes::unknown_patch(cluster))
    }),
    ("a_dry_run_changes_nothing", Anywhere, |cluster| {
        Box::pin(writes::rehearsed(cluster))
    }),
    ("k8_who_cordoned_is_told_by_managed_fields", Anywhere, |cluster| {
        Box::pin(writes::who_cordoned(cluster))
    }),
    ("a_pod_on_a_node_is_deleted_gracefully", Anywhere, |cluster| {
        Box::pin(writes::graceful_deletion(cluster))
    }),
    ("a_pod_on_no_node_is_deleted_at_once", Anywhere, |cluster| {
        Box::pin(writes::unbound_pods_go_at_once(cluster))
    }),
    ("the_last_finalizer_lets_an_object_go", Anywhere, |cluster| {
        Box::pin(writes::finalizers(cluster))
    }),
    ("a_pod_is_made_with_defaults", Anywhere, |cluster| {
        Box::pin(writes::pods_as_made(cluster))
    }),
    ("a_pod_is_bound_once", Anywhere, |cluster| {
        Box::pin(writes::binding(cluster))
    }),
    (
        "k13_leases_are_renewed_and_of_two_candidates_one_wins",
        Anywhere,
        |cluster| Box::pin(writes::leases(cluster)),
    ),
    ("an_eviction_without_a_budget_is_201", Anywhere, |cluster| {
        Box::pin(evictions::without_a_budget(cluster))
    }),
    ("an_eviction_is_counted", Anywhere, |cluster| {
        Box::pin(evictions::counted(cluster))
    }),
    ("k4_a_spent_budget_is_429", Anywhere, |cluster| {
        Box::pin(evictions::refused(cluster))
    }),
    ("k4_a_budget_not_yet_counted_is_429", Anywhere, |cluster| {
        Box::pin(evictions::not_yet_counted(cluster))
    }),
    ("k4_two_budgets_are_500", Anywhere, |cluster| {
        Box::pin(evictions::two_budgets(cluster))
    }),
    ("an_eviction_can_be_rehearsed", Anywhere, |cluster| {
        Box::pin(evictions::rehearsed(cluster))
    }),
    ("k6_another_pod_of_the_same_name_is_not_evicted", Anywhere, |cluster| {
        Box::pin(evictions::another_of_the_name(cluster))
    }),
    ("finished_and_pending_pods_are_evicted_unasked", Anywhere, |cluster| {
        Box::pin(evictions::finished_pods(cluster))
    }),
    ("a_watch_tells_what_comes_after_a_version", Anywhere, |cluster| {
        Box::pin(watches::from_a_version(cluster))
    }),
    ("a_watch_from_nothing_begins_with_what_is_there", Anywhere, |cluster| {
        Box::pin(watches::from_nothing(cluster))
    }),
    (
        "a_watch_tells_what_leaves_its_selector_as_deleted",
        Anywhere,
        |cluster| Box::pin(watches::through_a_selector(cluster)),
    ),
    ("a_bookmark_comes_before_the_end", Anywhere, |cluster| {
        Box::pin(watches::bookmarks(cluster))
    }),
    ("a_watch_from_too_old_a_version_is_410", OnTheFake, |cluster| {
        Box::pin(watches::too_old(cluster))
    }),
    ("k3_an_access_review_tells_what_is_allowed", Anywhere, |cluster| {
        Box::pin(access::reviewed(cluster))
    }),
    ("k3_what_is_forbidden_is_named", Anywhere, |cluster| {
        Box::pin(access::forbidden(cluster))
    }),
    ("k2_an_unknown_token_is_401", Anywhere, |cluster| {
        Box::pin(access::unknown_token(cluster))
    }),
    ("the_stages_kubelet_ends_pods_and_renews_leases", Anywhere, |cluster| {
        Box::pin(faults::kubelet(cluster))
    }),
    (
        "objects_of_the_oldest_and_the_newest_version_are_read",
        Anywhere,
        |cluster| Box::pin(fixtures::read_by_the_wake_server(cluster)),
    ),
    ("k1_the_fake_is_slow_as_told", OnTheFake, |cluster| {
        Box::pin(faults::hangs(cluster))
    }),
    ("k1_the_fake_refuses_as_told", OnTheFake, |cluster| {
        Box::pin(faults::refuses(cluster))
    }),
    ("k2_k3_the_fake_rejects_as_told", OnTheFake, |cluster| {
        Box::pin(faults::rejects(cluster))
    }),
    ("the_fake_fails_as_often_as_told", OnTheFake, |cluster| {
        Box::pin(faults::fails_next(cluster))
    }),
    ("the_fake_ends_watches_as_told", OnTheFake, |cluster| {
        Box::pin(faults::ends_watches(cluster))
    }),
    ("the_fake_is_of_the_version_told", OnTheFake, |cluster| {
        Box::pin(faults::versions(cluster))
    }),
    ("the_fake_forgets_as_told", OnTheFake, |cluster| {
        Box::pin(faults::gone(cluster))
    }),
];

fn main() {
    let arguments = Arguments::from_args();
    let trials = TRIALS.into_iter().map(|(name, needed, test)| {
        let trial = Trial::test(name, move || {
            let cluster = Cluster::start();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(test(&cluster));
            Ok(())
        });
        if needed == OnTheFake && Cluster::is_real() {
            trial
                .with_kind("needs the fake: it orders faults")
                .with_ignored_flag(true)
        } else {
            trial
        }
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}
