//! The body of an answer: a text, the lines of a running job, or a bundle.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use serde::Serialize;

use crate::carry::{self, Bundle};
use crate::upkeep::Job;

/// Dropping it ends the job that it tells of.
#[derive(Debug)]
pub(super) struct Body(Kind);

#[derive(Debug)]
enum Kind {
    Whole(Option<Bytes>),
    Story(Job),
    Images(carry::Job),
    Bundle(Bundle),
}

impl Body {
    pub(super) fn whole(bytes: Bytes) -> Self {
        Self(Kind::Whole(Some(bytes)))
    }

    pub(super) fn images(job: carry::Job) -> Self {
        Self(Kind::Images(job))
    }

    /// Its length is that of the plan.
    pub(super) fn bundle(bundle: Bundle) -> Self {
        Self(Kind::Bundle(bundle))
    }

    pub(super) fn story(job: Job) -> Self {
        Self(Kind::Story(job))
    }
}

/// One JSON object and a line feed.
fn line(event: &impl Serialize) -> Bytes {
    let mut text = serde_json::to_vec(event).expect("an event is plain data with text keys");
    text.push(b'\n');
    text.into()
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match &mut self.0 {
            Kind::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Story(job) => {
                job.poll_next(cx).map(|event| event.map(|event| Ok(Frame::data(line(&event)))))
            }
            Kind::Images(job) => {
                job.poll_next(cx).map(|event| event.map(|event| Ok(Frame::data(line(&event)))))
            }
            Kind::Bundle(bundle) => bundle
                .bytes
                .poll_next(cx)
                .map(|piece| piece.map(|piece| piece.map(Frame::data).map_err(io::Error::other))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.0, Kind::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Whole(bytes) => {
                let length = bytes.as_ref().map_or(0, Bytes::len);
                SizeHint::with_exact(u64::try_from(length).unwrap_or(u64::MAX))
            }
            Kind::Story(_) | Kind::Images(_) => SizeHint::default(),
            Kind::Bundle(bundle) => SizeHint::with_exact(bundle.plan.bytes),
        }
    }
}
