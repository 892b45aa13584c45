//! The members script: random exchanges of several gateways.

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    CALLS, TAG,
    pair::{Pair, bytes},
};
use crate::redis::Reply;

const MEMBERS: &str = include_str!("../../../src/bus/redis/members.lua");

/// Random exchanges of the members script.
pub async fn members_are_alike(url: &str, seed: u64) {
    let mut pair = Pair::with(url).await;
    let mut random = StdRng::seed_from_u64(seed);
    let mut numbers = [0_u64; 4];
    // The last change that each of them knows: its number and its content.
    let mut known = [const { (String::new(), Vec::new()) }; 4];
    for nth in 0..CALLS {
        let member = random.random_range(0..numbers.len());
        pair.now_ms += random.random_range(0..3000);
        let after = match random.random_range(0..6) {
            0 => 0,
            1 => numbers[member].saturating_sub(1),
            _ => numbers[member],
        };
        numbers[member] += 1;
        let mut argv = bytes(&[&format!("gateway-{member}"), "10000"]);
        let mut add = |value: String| argv.push(value.into_bytes());
        add(numbers[member].to_string());
        add(after.to_string());
        add(u8::from(random.random_bool(0.8)).to_string());
        add(format!("head {}", nth / 3));
        add("4000".to_owned());
        let (number, content) = &known[member];
        let knows = !number.is_empty() && random.random_bool(0.9);
        add(if knows { number.clone() } else { "0".to_owned() });
        argv.push(if knows { content.clone() } else { vec![] });
        let mut add = |value: String| argv.push(value.into_bytes());
        for _ in 0..random.random_range(0..4) {
            add(random.random_range(0..8).to_string());
            add(if random.random_bool(0.3) { String::new() } else { format!("page {nth}") });
        }
        let keys =
            [format!("{TAG}:heads"), format!("{TAG}:pages:{member}"), format!("{TAG}:changes")];
        // Redis lists a hash in any order, so members are compared as a set.
        let args = {
            let mut args = bytes(&["EVAL"]);
            let code = MEMBERS.replacen(
                "redis.call('TIME')",
                &format!("{{'{}', '{}'}}", pair.now_ms / 1000, pair.now_ms % 1000 * 1000),
                1,
            );
            args.push(code.into_bytes());
            args.push(b"3".to_vec());
            args.extend(keys.iter().map(|key| key.clone().into_bytes()));
            args.extend(argv);
            args
        };
        let real = sorted_members(pair.real(&args).await);
        let model = sorted_members(pair.model.call(&args));
        assert_eq!(real, model, "seed {seed}, call {nth}");
        if let [_, _, Reply::Bulk(number), Reply::Bulk(content)] = &real.0[..] {
            let number = String::from_utf8_lossy(number).into_owned();
            known[member] = (number, content.to_vec());
        }
    }
}

/// What an answer begins with, and its members.
fn sorted_members(reply: Reply) -> (Vec<Reply>, Vec<Vec<Reply>>) {
    let Reply::Array(parts) = reply else { panic!("not an array: {reply:?}") };
    let (head, members) = parts.split_at_checked(4).expect("never shorter");
    let mut members: Vec<Vec<Reply>> = members.chunks(3).map(<[Reply]>::to_vec).collect();
    members.sort_by_key(|member| format!("{:?}", member[0]));
    (head.to_vec(), members)
}
