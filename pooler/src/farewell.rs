//! How a client is sent away: told why, in a message it can still read, within a bounded time.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::client::Client;

/// How long to wait for the client's end of the stream once it has all been written. A close before that, with bytes of
/// the client's still unread, is a reset, and a reset may overtake the message.
const LINGER: Duration = Duration::from_millis(500);

/// Writes `last`, at most for `within`, ends the stream, and waits a little for the client to end it too.
pub async fn say(mut client: Client, last: &[u8], within: Duration) {
    let goodbye = async {
        client.write_all(last).await?;
        client.flush().await?;
        client.shutdown().await
    };
    // A client that will not listen is cut off; there is nobody left to tell.
    if !matches!(timeout(within, goodbye).await, Ok(Ok(()))) {
        tracing::debug!("a client did not wait for its goodbye");
        return;
    }
    let mut unread = [0; 1024];
    let end = async { while client.read(&mut unread).await.is_ok_and(|n| n > 0) {} };
    // Either way, it is over.
    let _ = timeout(LINGER, end).await;
}
