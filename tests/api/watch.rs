//! `Watch`: a stream whose interest changes while it lives.

use trunkline_proto::v1::{
    Event, Filter, InterestUpdate, ListNodesRequest, SubscribeRequest, WatchOpen,
    watch_request::Request,
};

use crate::{
    deployment::Deployment,
    on_both_buses,
    support::{
        Collector, LIMIT, Seen, TestNode, Watch,
        events::{custom, mailbox_change, queue_refresh, with_id},
        eventually,
        watch::accounts,
    },
};

on_both_buses!(
    what_follows_an_update_is_filtered_by_it,
    a_watch_without_updates_is_a_subscribe,
    interest_in_several_messages_is_opened_as_one,
    interest_added_since_a_token_gets_what_was_left_out,
    an_account_that_is_added_again_since_before_it_was_removed_repeats_nothing,
    a_resumed_stream_adds_nothing_since_before_its_token,
    a_stream_that_is_broken_off_while_it_repeats_nothing_is_told_of_the_rest,
    a_stream_that_is_broken_off_while_interest_is_behind_goes_on_there,
    a_token_of_an_update_resumes_with_the_new_interest,
    kinds_and_custom_types_are_added_and_removed,
    an_update_that_replaces_leaves_nothing_of_what_was,
    parts_of_an_update_take_effect_together,
    a_node_that_closes_its_side_goes_on_as_a_subscriber,
    acknowledgements_show_in_the_list_of_nodes,
    an_update_is_explained_from_where_it_is_in_force,
);

fn of(account: &str, id: &str) -> Event {
    with_id(id, mailbox_change(account, 1))
}

/// A node that publishes, and one at the other gateway that watches.
struct Stage {
    publisher: TestNode,
    node: TestNode,
    /// Gets everything at the gateway of `node`.
    witness: Collector,
    published: usize,
}

impl Stage {
    async fn of(deployment: &Deployment) -> Stage {
        let (publisher, node) = (deployment.node("p").await, deployment.remote("s").await);
        let witness = deployment.remote("witness").await;
        let witness = witness.subscribe(witness.request()).await;
        Stage { publisher, node, witness, published: 0 }
    }

    /// Publishes events, and returns when they have come to the gateway of the other node.
    async fn publish_all(&mut self, events: Vec<Event>) {
        self.published += events.len();
        self.publisher.publish(events).await.unwrap();
        self.witness.events(self.published, LIMIT).await;
    }

    async fn publish(&mut self, events: &[(&str, &str)]) {
        self.publish_all(events.iter().map(|(account, id)| of(account, id)).collect()).await;
    }

    /// A stream of the account `a` that has passed 4,000 events of `b`, more than one batch, and
    /// has got `a1`; and its token from before them.
    async fn watch_past_many(&mut self) -> (Watch, Vec<u8>) {
        let watch = self.node.watch(self.node.open(accounts(["a"]))).await;
        let since = watch.subscribed().await.resume_token;
        for first in (0..4000).step_by(500) {
            let events = (first..first + 500).map(|n| of("b", &format!("b{n}")));
            self.publish_all(events.collect()).await;
        }
        self.publish(&[("a", "a1")]).await;
        watch.event("a1", LIMIT).await;
        (watch, since)
    }
}

/// The ids of events, with `+n` where update n came into force.
fn order(watch: &Watch) -> Vec<String> {
    watch.with(|recording| {
        let mut order = vec![];
        for seen in &recording.seen {
            match seen {
                Seen::Events { events, .. } => {
                    order.extend(recording.event_ids[events.clone()].iter().cloned());
                }
                Seen::InterestUpdated(updated) => order.push(format!("+{}", updated.update_id)),
                Seen::Gap(gap) => order.push(format!("gap {:?}", gap.missed_events)),
                _ => {}
            }
        }
        order
    })
}

async fn what_follows_an_update_is_filtered_by_it(deployment: Deployment) {
    let mut stage = Stage::of(&deployment).await;
    let node = stage.node.clone();
    let mut watch = node.watch(node.open(accounts(["a"]))).await;
    stage.publish(&[("a", "a1"), ("b", "b1")]).await;
    watch.event("a1", LIMIT).await;
    let updated = watch.change(&["b", "c"], &[]).await;
    assert_eq!((updated.update_id, updated.accounts), (1, 3));
    stage.publish(&[("a", "a2"), ("b", "b2"), ("d", "d2"), ("c", "c2")]).await;
    watch.event("c2", LIMIT).await;
    assert_eq!(watch.change(&[], &["a", "x"]).await.accounts, 2);
    stage.publish(&[("a", "a3"), ("b", "b3")]).await;
    watch.event("b3", LIMIT).await;
    watch.change(&[], &["b", "c"]).await;
    stage.publish(&[("a", "a4"), ("b", "b4"), ("c", "c4")]).await;
    watch.change(&["a"], &[]).await;
    stage.publish(&[("a", "a5")]).await;
    watch.event("a5", LIMIT).await;
    let order = order(&watch);
    let mut by_account = order.clone();
    by_account.retain(|seen| !seen.starts_with('c'));
    let expected = ["a1", "+1", "a2", "b2", "+2", "b3", "+3", "+4", "a5"];
    // Events of two accounts may be of two shards, in any order.
    let sorted = |mut part: Vec<String>| {
        part.sort();
        part
    };
    assert_eq!(sorted(by_account.clone()), sorted(expected.map(str::to_owned).to_vec()));
    let after = |update: &str| by_account.iter().position(|seen| seen == update).expect("update");
    assert!(after("+2") > after("+1") && !by_account[after("+2")..].contains(&"a2".to_owned()));
    assert!(!order.iter().any(|seen| ["b1", "d2", "a3", "a4", "b4", "c4"].contains(&&seen[..])));
}

async fn a_watch_without_updates_is_a_subscribe(deployment: Deployment) {
    let mut stage = Stage::of(&deployment).await;
    let node = stage.node.clone();
    let subscribe = SubscribeRequest { max_events: 2, ..node.request() };
    let open = WatchOpen { subscribe: Some(subscribe), ..WatchOpen::default() };
    let watch = node.watch(open).await;
    stage.publish(&[("a", "1"), ("a", "2"), ("a", "3")]).await;
    watch.end(LIMIT).await.expect("the end is no error");
    assert_eq!(watch.event_ids(), ["1", "2"]);
    // Its tokens are those of any stream.
    let request = SubscribeRequest { resume_token: watch.last_token(), ..node.request() };
    let next = node.subscribe(request).await;
    assert_eq!(next.events(1, LIMIT).await.event_ids, ["3"]);
}

async fn interest_in_several_messages_is_opened_as_one(deployment: Deployment) {
    let mut stage = Stage::of(&deployment).await;
    let node = stage.node.clone();
    let first = node.watch(node.open(accounts(["a", "b", "c"]))).await;
    stage.publish(&[("a", "a1"), ("b", "b1"), ("c", "c1"), ("d", "d1")]).await;
    let token = first.subscribed().await.resume_token;
    first.events(3, LIMIT).await;
    let mut open = node.open(accounts(["a"]));
    open.subscribe.as_mut().unwrap().resume_token = token;
    open.incomplete = true;
    let part = |update_id, account: &str, incomplete| {
        let add = Some(accounts([account]));
        Request::Update(InterestUpdate { update_id, add, incomplete, ..Default::default() })
    };
    let parts = vec![Request::Open(open), part(3, "b", true), part(4, "c", false)];
    let watch = node.watch_with(parts).await.unwrap();
    let subscribed = watch.subscribed().await;
    assert!(subscribed.resumed && subscribed.replayed_events >= 3, "{subscribed:?}");
    let mut ids = watch.events(3, LIMIT).await.event_ids;
    ids.sort();
    assert_eq!(ids, ["a1", "b1", "c1"]);
}

async fn interest_added_since_a_token_gets_what_was_left_out(deployment: Deployment) {
    let mut stage = Stage::of(&deployment).await;
    let node = stage.node.clone();
    let mut watch = node.watch(node.open(accounts(["a"]))).await;
    let since = watch.subscribed().await.resume_token;
    stage.publish(&[("a", "a1"), ("b", "b1"), ("b", "b2"), ("c", "c1")]).await;
    watch.event("a1", LIMIT).await;
    let add = Some(accounts(["b"]));
    let id = watch.update(InterestUpdate { add, since, ..Default::default() }).await;
    watch.updated(id).await;
    stage.publish(&[("b", "b3"), ("a", "a2")]).await;
    watch.events(5, LIMIT).await;
    let order = order(&watch);
    let of_b: Vec<_> = order.iter().filter(|seen| !seen.starts_with('a')).collect();
    assert_eq!(of_b, ["+1", "b1", "b2", "b3"]);
    assert_eq!(order.iter().filter(|seen| seen.starts_with('a')).count(), 2, "{order:?}");
}

async fn an_account_that_is_added_again_since_before_it_was_removed_repeats_nothing(
    deployment: Deployment,
) {
    let mut stage = Stage::of(&deployment).await;
    let node = stage.node.clone();
    let mut watch = node.watch(node.open(accounts(["a", "b"]))).await;
    let since = watch.subscribed().await.resume_token;
    stage.publish(&[("a", "a1"), ("b", "b1"), ("c", "c1")]).await;
    watch.events(2, LIMIT).await;
    watch.change(&[], &["a"]).await;
    stage.publish(&[("a", "a2"), ("b", "b2"), ("c", "c2")]).await;
    watch.event("b2", LIMIT).await;
    // With one of which the stream had nothing, which begins at the token.
    let add = Some(accounts(["a", "c"]));
    let update = InterestUpdate { add, since: since.clone(), ..Default::default() };
    let id = watch.update(update).await;
    watch.updated(id).await;
    stage.publish(&[("a", "a3"), ("b", "b3"), ("c", "c3")]).await;
    watch.events(9, LIMIT).await;
    // What came late is not repeated either.
    watch.change(&[], &["c"]).await;
    let id =
        watch.update(InterestUpdate { add: Some(accounts(["c"])), since, ..Default::default() });
    let id = id.await;
    watch.updated(id).await;
    stage.publish(&[("c", "c4")]).await;
    watch.event("c4", LIMIT).await;
    let mut ids = watch.event_ids();
    ids.sort();
    let expected = ["a1", "a2", "a3", "b1", "b2", "b3", "c1", "c2", "c3", "c4"];
    assert_eq!(ids, expected);
    assert!(watch.with(|recording| recording.gaps().is_empty()));
}

async fn a_resumed_stream_adds_nothing_since_before_its_token(deployment: Deployment) {
    let mut stage = Stage::of(&deployment).await;
    let node = stage.node.clone();
    let mut watch = node.watch(node.open(accounts(["a"]))).await;
    let since = watch.subscribed().await.resume_token;
    stage.publish(&[("a", "a1")]).await;
    watch.event("a1", LIMIT).await;
    let token = watch.change(&[], &["a"]).await.resume_token;
    drop(watch);
    let other = deployment.node("s").await;
    let mut open = other.open(Filter::default());
    open.subscribe.as_mut().unwrap().resume_token = token;
    let mut resumed = other.watch(open).await;
    assert!(resumed.subscribed().await.resumed);
    stage.publish(&[("a", "a2")]).await;
    // It does not know what the stream before it had of the account.
    let update = InterestUpdate { add: Some(accounts(["a"])), since, ..Default::default() };
    let id = resumed.update(update).await;
    resumed.updated(id).await;
    let missed = resumed.gap(LIMIT).await.missed_events.expect("a count");
    stage.publish(&[("a", "a3")]).await;
    resumed.event("a3", LIMIT).await;
    let ids = resumed.event_ids();
    assert!(ids == ["a2", "a3"] || ids == ["a3"], "{ids:?}");
    assert_eq!((missed, ids.len()), (1, 2), "{ids:?}");
}

async fn a_stream_that_is_broken_off_while_it_repeats_nothing_is_told_of_the_rest(
    deployment: Deployment,
) {
    let mut stage = Stage::of(&deployment).await;
    let (mut watch, since) = stage.watch_past_many().await;
    watch.change(&[], &["a"]).await;
    let add = Some(accounts(["a", "b"]));
    let id = watch.update(InterestUpdate { add: add.clone(), since, ..Default::default() }).await;
    watch.updated(id).await;
    watch.events(4001, LIMIT).await;
    // As it was after its first batch: it had had `a1`, which a stream that resumes there cannot
    // know.
    let token = watch.with(|recording| {
        let late = recording.seen.iter();
        let mut late =
            late.skip_while(|seen| !matches!(seen, Seen::InterestUpdated(u) if u.update_id == id));
        late.find_map(|seen| match seen {
            Seen::Events { token, .. } => Some(token.clone()),
            _ => None,
        })
    });
    drop(watch);
    let other = deployment.node("s").await;
    let mut open = other.open(Filter::default());
    open.subscribe.as_mut().unwrap().resume_token = token.clone().expect("a batch");
    open.incomplete = true;
    let again =
        InterestUpdate { update_id: 1, add, since: token.expect("a batch"), ..Default::default() };
    let resumed = other.watch_with(vec![Request::Open(open), Request::Update(again)]);
    let resumed = resumed.await.unwrap();
    resumed.updated(1).await;
    resumed.gap(LIMIT).await;
    stage.publish(&[("a", "a2")]).await;
    resumed.event("a2", LIMIT).await;
    let ids = resumed.event_ids();
    assert!(!ids.contains(&"a1".to_owned()), "{ids:?}");
}

async fn a_stream_that_is_broken_off_while_interest_is_behind_goes_on_there(
    deployment: Deployment,
) {
    let mut stage = Stage::of(&deployment).await;
    let (mut watch, since) = stage.watch_past_many().await;
    let update = || InterestUpdate { add: Some(accounts(["b"])), ..Default::default() };
    let id = watch.update(InterestUpdate { since, ..update() }).await;
    watch.updated(id).await;
    watch.events(4001, LIMIT).await;
    // As it was after its first batch.
    let (token, had) = watch.with(|recording| {
        let batch =
            recording.seen.iter().skip_while(|seen| !matches!(seen, Seen::InterestUpdated(_)));
        let found = batch.clone().find_map(|seen| match seen {
            Seen::Events { events, token } => Some((token.clone(), events.end)),
            _ => None,
        });
        found.expect("a batch")
    });
    assert!(had < 4001, "the rest is behind");
    let expected = watch.event_ids()[had..].to_vec();
    drop(watch);
    // On any gateway, with the rest of the interest, and this part again.
    let other = deployment.node("s").await;
    let mut open = other.open(accounts(["a"]));
    open.subscribe.as_mut().unwrap().resume_token.clone_from(&token);
    open.incomplete = true;
    let again = InterestUpdate { update_id: 1, since: token.clone(), ..update() };
    let resumed = other.watch_with(vec![Request::Open(open.clone()), Request::Update(again)]);
    let resumed = resumed.await.unwrap();
    assert!(resumed.subscribed().await.resumed);
    stage.publish(&[("b", "last")]).await;
    resumed.event("last", LIMIT).await;
    let ids = resumed.event_ids();
    assert_eq!(ids[..ids.len() - 1], expected);
    // Who does not go on with it is told.
    open.incomplete = false;
    let told = other.watch(open).await;
    assert!(!told.subscribed().await.resumed);
    let missed = told.gap(LIMIT).await.missed_events.expect("a count");
    assert!(missed >= 4001 - had as u64, "{missed}");
    let request = SubscribeRequest { resume_token: token, ..other.request() };
    other.subscribe(request).await.gap(LIMIT).await;
}

async fn a_token_of_an_update_resumes_with_the_new_interest(deployment: Deployment) {
    let mut stage = Stage::of(&deployment).await;
    let node = stage.node.clone();
    let mut watch = node.watch(node.open(accounts(["a"]))).await;
    let token = watch.change(&["b"], &["a"]).await.resume_token;
    drop(watch);
    stage.publish(&[("a", "a1"), ("b", "b1")]).await;
    let other = deployment.node("s").await;
    let mut open = other.open(accounts(["b"]));
    open.subscribe.as_mut().unwrap().resume_token = token;
    let resumed = other.watch(open).await;
    assert_eq!(resumed.events(1, LIMIT).await.event_ids, ["b1"]);
}

async fn kinds_and_custom_types_are_added_and_removed(deployment: Deployment) {
    let mut stage = Stage::of(&deployment).await;
    let node = stage.node.clone();
    let mut open = node.open(Filter::default());
    open.custom_types_named = true;
    let mut watch = node.watch(open).await;
    let round = |round: &str| {
        vec![
            with_id(format!("one {round}"), custom("com.one")),
            with_id(format!("two {round}"), custom("com.two")),
            of("a", &format!("a {round}")),
            with_id(format!("queue {round}"), queue_refresh()),
        ]
    };
    stage.publish_all(round("1")).await;
    watch.event("queue 1", LIMIT).await;
    let types = |types: &[&str]| {
        let custom_types = types.iter().map(|name| (*name).to_owned()).collect();
        Some(Filter { custom_types, ..Filter::default() })
    };
    let add = types(&["com.*", "com.one"]);
    let id = watch.update(InterestUpdate { add, ..Default::default() }).await;
    assert_eq!(watch.updated(id).await.custom_types, 2);
    stage.publish_all(round("2")).await;
    watch.events(4, LIMIT).await;
    let remove = types(&["com.*"]);
    let id = watch.update(InterestUpdate { remove, ..Default::default() }).await;
    assert_eq!(watch.updated(id).await.custom_types, 1);
    stage.publish_all(round("3")).await;
    watch.events(6, LIMIT).await;
    let kinds = |kinds: &[i32]| Some(Filter { kinds: kinds.to_vec(), ..Filter::default() });
    let id = watch.update(InterestUpdate { remove: kinds(&[20, 19]), ..Default::default() }).await;
    watch.updated(id).await;
    stage.publish_all(round("4")).await;
    let id = watch.update(InterestUpdate { add: kinds(&[19]), ..Default::default() }).await;
    watch.updated(id).await;
    stage.publish_all(round("5")).await;
    watch.event("queue 5", LIMIT).await;
    let mut ids = watch.event_ids();
    ids.sort();
    let expected = ["one 2", "one 3", "queue 1", "queue 2", "queue 3", "queue 5", "two 2"];
    assert_eq!(ids, expected);
}

async fn an_update_that_replaces_leaves_nothing_of_what_was(deployment: Deployment) {
    let mut stage = Stage::of(&deployment).await;
    let node = stage.node.clone();
    let mut watch = node.watch(node.open(accounts(["a", "b"]))).await;
    let replace =
        |filter| InterestUpdate { add: Some(filter), replace: true, ..Default::default() };
    let id = watch.update(replace(accounts(["b", "c"]))).await;
    assert_eq!(watch.updated(id).await.accounts, 2);
    stage.publish(&[("a", "a1"), ("b", "b1"), ("c", "c1")]).await;
    watch.events(2, LIMIT).await;
    // The stream was opened with named accounts: none is none.
    let id = watch.update(replace(Filter::default())).await;
    assert_eq!(watch.updated(id).await.accounts, 0);
    stage.publish(&[("b", "b2"), ("c", "c2")]).await;
    watch.change(&["c"], &[]).await;
    stage.publish(&[("c", "c3")]).await;
    watch.event("c3", LIMIT).await;
    let mut ids = watch.event_ids();
    ids.sort();
    assert_eq!(ids, ["b1", "c1", "c3"]);
}

async fn parts_of_an_update_take_effect_together(deployment: Deployment) {
    let mut stage = Stage::of(&deployment).await;
    let node = stage.node.clone();
    let mut watch = node.watch(node.open(accounts(["a"]))).await;
    let part = |add: &[&str], remove: &[&str], incomplete| InterestUpdate {
        add: Some(accounts(add.iter().copied())),
        remove: Some(accounts(remove.iter().copied())),
        incomplete,
        ..Default::default()
    };
    watch.update(part(&["b"], &["a"], true)).await;
    let wrong = watch.update(part(&[""], &[], true)).await;
    watch.rejected(wrong).await;
    let last = watch.update(part(&["c"], &[], false)).await;
    let why = watch.rejected(last).await.status.unwrap().message;
    assert_eq!(why, format!("update_id: part {wrong} of this update was rejected"));
    stage.publish(&[("a", "a1"), ("b", "b1"), ("c", "c1")]).await;
    watch.event("a1", LIMIT).await;
    watch.update(part(&["b", "d"], &["a"], true)).await;
    let id = watch.update(part(&["c"], &["d"], false)).await;
    assert_eq!(watch.updated(id).await.accounts, 2);
    stage.publish(&[("a", "a2"), ("b", "b2"), ("c", "c2"), ("d", "d2")]).await;
    watch.events(3, LIMIT).await;
    let mut ids = watch.event_ids();
    ids.sort();
    assert_eq!(ids, ["a1", "b2", "c2"]);
}

async fn a_node_that_closes_its_side_goes_on_as_a_subscriber(deployment: Deployment) {
    let mut stage = Stage::of(&deployment).await;
    let node = stage.node.clone();
    let mut watch = node.watch(node.open(accounts(["a"]))).await;
    watch.change(&["b"], &["a"]).await;
    watch.close_requests();
    for n in 0..20 {
        stage.publish(&[("a", "a"), ("b", &format!("b{n}"))]).await;
        watch.event(&format!("b{n}"), LIMIT).await;
    }
    assert_eq!(watch.event_ids().len(), 20);
    assert!(watch.with(|recording| recording.ended().is_none()));
}

async fn acknowledgements_show_in_the_list_of_nodes(deployment: Deployment) {
    let mut stage = Stage::of(&deployment).await;
    let node = stage.node.clone();
    let mut watch = node.watch(node.open(accounts(["a"]))).await;
    watch.change(&["b", "c"], &[]).await;
    stage.publish(&[("b", "b1"), ("b", "b2")]).await;
    watch.event("b2", LIMIT).await;
    let token = watch.last_token();
    stage.publish(&[("b", "b3")]).await;
    watch.event("b3", LIMIT).await;
    // Both gateways tell, the other one after a while.
    let publisher = stage.publisher.clone();
    let listed = async |unacknowledged: u64, acknowledged: bool| {
        for from in [&node, &publisher] {
            eventually(LIMIT, "the node as it is", async || {
                let request = ListNodesRequest { node_id: "s".into(), ..Default::default() };
                let listed = from.client.clone().list_nodes(request).await.unwrap().into_inner();
                let node = listed.nodes.first()?;
                (node.unacknowledged_events == unacknowledged
                    && node.acknowledge_time.is_some() == acknowledged
                    && node.interest_updates == 1
                    && node.filter_accounts == 3)
                    .then_some(())
            })
            .await;
        }
    };
    listed(3, false).await;
    watch.acknowledge(token).await;
    listed(1, true).await;
    watch.acknowledge(watch.last_token()).await;
    listed(0, true).await;
}

async fn an_update_is_explained_from_where_it_is_in_force(deployment: Deployment) {
    let mut stage = Stage::of(&deployment).await;
    let node = stage.node.clone();
    let mut open = node.open(accounts(["a"]));
    open.subscribe.as_mut().unwrap().explain = true;
    let mut watch = node.watch(open).await;
    stage.publish(&[("b", "b1")]).await;
    assert_eq!(watch_verdicts(&watch, 1).await, [("b1".to_owned(), false)]);
    watch.change(&["b"], &["a"]).await;
    stage.publish(&[("b", "b2")]).await;
    watch.event("b2", LIMIT).await;
    stage.publish(&[("a", "a2")]).await;
    let expected = [("b1", false), ("b2", true), ("a2", false)];
    let expected = expected.map(|(id, delivered)| (id.to_owned(), delivered));
    assert_eq!(watch_verdicts(&watch, 3).await, expected);
}

/// Ids and decisions, once there are so many.
async fn watch_verdicts(collector: &Collector, count: usize) -> Vec<(String, bool)> {
    collector
        .wait(LIMIT, "verdicts", |recording| {
            let verdicts = recording.explanations().into_iter().flat_map(|all| &all.verdicts);
            let verdicts: Vec<_> =
                verdicts.map(|verdict| (verdict.event_id.clone(), verdict.delivered)).collect();
            (verdicts.len() >= count).then_some(verdicts)
        })
        .await
}
