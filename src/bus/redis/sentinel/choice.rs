//! The choice of a master among the servers that sentinels name.

use std::vec::IntoIter;

use super::answer::{Address, Answer, Answers, MAX_REPLICAS, given};

/// Which of the named servers is the master: the first one that says itself that it is one.
///
/// That of the latest configuration is looked at first, then the one that most sentinels name. The
/// master in use is not asked: calls that it refuses show what it is.
pub struct Choice<'a> {
    answers: &'a Answers,
    used: Option<&'a Address>,
    left: IntoIter<Address>,
    /// The server that is asked now.
    asked: Option<Address>,
    refused: Vec<String>,
}

/// What comes next in a choice.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask this server whether it is a master, and say what it answered.
    Ask(Address),
    /// Use this master and its replicas; the choice is over.
    Use(Address, Vec<Address>),
    /// No other master is known, and why; what was used stays.
    Keep(String),
}

impl<'a> Choice<'a> {
    /// A choice among the servers that are named in the `answers`, while `used` is the master.
    pub fn new(answers: &'a Answers, used: Option<&'a Address>) -> Choice<'a> {
        let left = candidates(answers).into_iter();
        Choice { answers, used, left, asked: None, refused: vec![] }
    }

    /// What is to be done.
    pub fn step(&mut self) -> Step {
        match self.left.next() {
            Some(master) if Some(&master) == self.used => self.of(master),
            Some(other) => {
                self.asked = Some(other.clone());
                Step::Ask(other)
            }
            None => Step::Keep(self.why()),
        }
    }

    /// Takes what the server answered that was asked, and says what is to be done. The error says
    /// what it is instead of a master.
    pub fn answered(&mut self, role: Result<(), String>) -> Step {
        let Some(asked) = self.asked.take() else { return self.step() };
        match role {
            Ok(()) => self.of(asked),
            Err(why) => {
                let (host, port) = asked;
                self.refused.push(format!("sentinels name {host}:{port} as the master: {why}"));
                self.step()
            }
        }
    }

    fn of(&self, master: Address) -> Step {
        let replicas = replicas(self.answers, &master);
        Step::Use(master, replicas)
    }

    fn why(&mut self) -> String {
        let mut why = std::mem::take(&mut self.refused);
        why.extend(self.answers.iter().filter_map(|(sentinel, answer)| {
            Some(format!("sentinel {sentinel}: {}", answer.as_ref().err()?))
        }));
        why.join("; ")
    }
}

/// The servers that may be the master, the most likely first: that of the latest configuration,
/// then the one that most sentinels name.
pub fn candidates(answers: &Answers) -> Vec<Address> {
    let mut found: Vec<(u64, usize, Address)> = Vec::new();
    for Answer { master, epoch, .. } in given(answers) {
        match found.iter_mut().find(|(.., known)| known == master) {
            Some((latest, votes, _)) => (*latest, *votes) = ((*latest).max(*epoch), *votes + 1),
            None => found.push((*epoch, 1, master.clone())),
        }
    }
    found.sort_by(|one, two| two.cmp(one));
    found.into_iter().map(|(.., address)| address).collect()
}

/// The replicas of a master.
fn replicas(answers: &Answers, master: &Address) -> Vec<Address> {
    let mut all: Vec<Address> = given(answers)
        .filter(|answer| answer.master == *master)
        .flat_map(|answer| answer.replicas.iter().cloned())
        .filter(|replica| replica != master)
        .collect();
    all.sort();
    all.dedup();
    all.truncate(MAX_REPLICAS);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naming(host: &str, epoch: u64) -> (String, Result<Answer, String>) {
        let master = (host.to_owned(), 6379);
        let answer = Answer { master, epoch, replicas: vec![], sentinels: vec![] };
        (format!("{host}-{epoch}"), Ok(answer))
    }

    #[test]
    fn the_master_of_the_latest_configuration_is_tried_first_then_that_of_most_sentinels() {
        let hosts = |answers: &Answers| -> Vec<String> {
            candidates(answers).into_iter().map(|(host, _)| host).collect()
        };
        let silent = ("s".to_owned(), Err("refused".to_owned()));
        let answers = vec![naming("old", 3), naming("old", 3), naming("new", 4), silent.clone()];
        assert_eq!(hosts(&answers), ["new", "old"]);
        // Where sentinels do not show it.
        let answers = vec![naming("one", 0), naming("two", 0), naming("two", 0)];
        assert_eq!(hosts(&answers), ["two", "one"]);
        assert!(hosts(&vec![silent]).is_empty());
    }

    #[test]
    fn a_server_is_used_that_says_itself_that_it_is_a_master() {
        let at = |host: &str| (host.to_owned(), 6379);
        let silent = ("s".to_owned(), Err("refused".to_owned()));
        let answers = vec![naming("old", 3), naming("new", 4), silent];
        let old = at("old");
        // The replica of the latest configuration is not promoted yet.
        let mut choice = Choice::new(&answers, Some(&old));
        assert_eq!(choice.step(), Step::Ask(at("new")));
        assert_eq!(choice.answered(Err("it is a replica".into())), Step::Use(old.clone(), vec![]));
        // It is; the master that is in use is not asked.
        let mut choice = Choice::new(&answers, Some(&old));
        assert_eq!(choice.step(), Step::Ask(at("new")));
        assert_eq!(choice.answered(Ok(())), Step::Use(at("new"), vec![]));
        let new = at("new");
        assert_eq!(Choice::new(&answers, Some(&new)).step(), Step::Use(at("new"), vec![]));
        // None is.
        let mut choice = Choice::new(&answers, None);
        assert_eq!(choice.step(), Step::Ask(at("new")));
        assert_eq!(choice.answered(Err("it is a replica".into())), Step::Ask(old));
        let Step::Keep(why) = choice.answered(Err("no answer".into())) else { panic!("none is") };
        assert_eq!(
            why,
            "sentinels name new:6379 as the master: it is a replica; sentinels name old:6379 as \
             the master: no answer; sentinel s: refused"
        );
    }
}
