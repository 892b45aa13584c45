//! Checks of the sentinels: whether they answer, agree, and name a server that is a master.

use std::sync::Arc;

use super::{Finding, Progress, Server, Settings, limited};
use crate::bus::{
    ShardId,
    redis::{
        sentinel::{Sentinels, answer::Answer, choice::candidates},
        topology::Topology,
    },
};

const CHECK: &str = "sentinels";

/// Examines the sentinels. Returns the master; none if it is not found.
pub(super) async fn examine(
    settings: &Settings,
    report: &mut (dyn FnMut(Progress) + Send),
) -> Vec<Arc<Server>> {
    let fails = |why: String| {
        let advice = "see that the sentinels run, know the master by coordinator.masterName, and \
                      that gateways reach what they name";
        Finding::failure(CHECK, why, advice)
    };
    let sentinels = match Sentinels::new(settings) {
        Ok(Some(sentinels)) => sentinels,
        Ok(None) => return vec![],
        Err(error) => {
            report(Progress::Found(fails(error.to_string())));
            return vec![];
        }
    };
    // The first ones name the others.
    sentinels.ask_all().await;
    let answers = sentinels.ask_all().await;
    let mut answered = 0;
    for (sentinel, answer) in &answers {
        let finding = match answer {
            Ok(answer) => {
                answered += 1;
                Finding::ok(CHECK, format!("{sentinel} {}", said(answer)))
            }
            Err(why) => {
                let advice = "the others are enough while most of all sentinels run; see that it \
                              runs, and that gateways reach it";
                Finding::warning(CHECK, format!("{sentinel}: {why}"), advice)
            }
        };
        report(Progress::Found(finding));
    }
    let masters = candidates(&answers);
    if masters.len() > 1 {
        let named: Vec<_> = masters.iter().map(|(host, port)| format!("{host}:{port}")).collect();
        let seen = format!("the sentinels name different masters: {}", named.join(", "));
        let advice = "it passes with a failover; if it stays, see the logs of the sentinels, and \
                      whether they reach one another";
        report(Progress::Found(Finding::warning(CHECK, seen, advice)));
    }
    if answered > 0 && 2 * answered <= answers.len() {
        let seen = format!("{answered} of {} sentinels answer", answers.len());
        let advice = "without a majority there is no failover: start the others, or SENTINEL RESET \
                      those that are gone for good";
        report(Progress::Found(Finding::warning(CHECK, seen, advice)));
    }
    let find = async {
        let topology = Topology::new(settings.clone(), vec![0]).map_err(|e| e.to_string())?;
        topology.refresh().await.map_err(|error| error.to_string())?;
        topology.master(ShardId(0)).ok_or_else(|| "no master is named".to_owned())
    };
    match limited(Box::pin(find)).await {
        Ok(master) => vec![master],
        Err(why) => {
            report(Progress::Found(fails(why)));
            vec![]
        }
    }
}

fn said(answer: &Answer) -> String {
    let (host, port) = &answer.master;
    format!(
        "names {host}:{port} as the master, with {} replicas in sync and {} other sentinels",
        answer.replicas.len(),
        answer.sentinels.len()
    )
}
