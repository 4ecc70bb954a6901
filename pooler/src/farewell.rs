//! How a client is sent away: told why, in a message it can still read, within a bounded time.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::client::Client;

/// Writes `last`, ends the stream, and waits for the client's end of it, so that no reset overtakes the message. Done
/// after `within` at the latest.
pub async fn say(mut client: Client, last: &[u8], within: Duration) {
    let goodbye = async {
        client.write_all(last).await?;
        client.flush().await?;
        client.shutdown().await?;
        let mut unread = [0; 1024];
        while client.read(&mut unread).await? > 0 {}
        std::io::Result::Ok(())
    };
    // A client that will not listen is cut off; there is nobody left to tell.
    if let Ok(Err(error)) = timeout(within, goodbye).await {
        tracing::debug!(%error, "client did not wait for its goodbye");
    }
}
