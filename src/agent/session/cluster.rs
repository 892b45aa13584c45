//! What a client of a Redis cluster asks. The answer is one node that has every slot: this address.

use bytes::{Bytes, BytesMut};

use super::{
    Session, Step,
    dispatch::{Answer, unknown_subcommand, upper},
};
use crate::agent::resp::Reply;

/// The last hash slot of a cluster.
const LAST_SLOT: i64 = 16_383;

impl Session {
    pub(super) fn cluster(&self, arguments: &[Bytes], out: &mut BytesMut) -> Answer {
        let (host, port) = &self.address;
        let node_id = self.run_id();
        let mut reply = Reply::new(out, self.version);
        match upper(&arguments[0]).as_str() {
            "SLOTS" => {
                reply.array(1);
                reply.array(3);
                reply.integer(0);
                reply.integer(LAST_SLOT);
                reply.array(3);
                reply.bulk(host);
                reply.integer((*port).into());
                reply.bulk(&node_id);
            }
            "SHARDS" => {
                reply.array(1);
                reply.map(2);
                reply.bulk("slots");
                reply.array(2);
                reply.integer(0);
                reply.integer(LAST_SLOT);
                reply.bulk("nodes");
                reply.array(1);
                reply.map(7);
                reply.bulk("id");
                reply.bulk(&node_id);
                reply.bulk("port");
                reply.integer((*port).into());
                reply.bulk("ip");
                reply.bulk(host);
                reply.bulk("endpoint");
                reply.bulk(host);
                reply.bulk("role");
                reply.bulk("master");
                reply.bulk("replication-offset");
                reply.integer(0);
                reply.bulk("health");
                reply.bulk("online");
            }
            "NODES" => reply.bulk(format!(
                "{node_id} {host}:{port}@0 myself,master - 0 0 1 connected 0-{LAST_SLOT}\n"
            )),
            "INFO" => reply.bulk(
                "cluster_state:ok\r\ncluster_slots_assigned:16384\r\ncluster_slots_ok:16384\r\n\
                 cluster_known_nodes:1\r\ncluster_size:1\r\n",
            ),
            "MYID" => reply.bulk(&node_id),
            _ => return Err(unknown_subcommand("CLUSTER", &arguments[0])),
        }
        Ok(Step::Answered)
    }
}
