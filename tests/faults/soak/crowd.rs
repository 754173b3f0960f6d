//! The clients: each carries out what the plan gives it and says what came, byte for byte compared with what must come.

use std::ops::Range;
use std::time::Duration;

use tokio::sync::watch;

use crate::support::client::{Client, End, Request, Response};
use crate::support::content::{Data, Image, to_u64, to_usize};
use crate::support::multipart::parts;

use super::model::{Asked, Came, Seen};
use super::plan::{Ask, Reading};
use super::scene::{Repository, Scene, tag_name};

/// What a slow reader waits after each piece.
const PAUSE: Duration = Duration::from_millis(2);
/// A restart takes less.
const RESTART: Duration = Duration::from_secs(5);

pub(super) struct Visitor<'a> {
    /// Where the product listens; it changes with a restart.
    pub(super) server: watch::Receiver<Client>,
    pub(super) scene: &'a Scene,
    /// Counts the answers of the whole crowd.
    pub(super) answered: &'a watch::Sender<u64>,
    pub(super) seen: Vec<Seen>,
}

/// A body with what is asked of it.
struct Expected<'a> {
    data: &'a Data,
    digest: &'a str,
}

impl Visitor<'_> {
    pub(super) async fn visit(mut self, asks: &[Ask]) -> Vec<Seen> {
        for ask in asks {
            match ask {
                Ask::Tag { repository, tag, head } => {
                    self.tag(*repository, *tag, *head).await;
                }
                Ask::Manifest { repository, image, child, head } => {
                    let below = self.image(*repository, *image).manifests();
                    let wanted = below[child % below.len()].clone();
                    self.manifest(*repository, &wanted, *head).await;
                }
                Ask::Blob { repository, image, part, how } => {
                    let blobs = self.image(*repository, *image).all_blobs();
                    let digest = blobs[part % blobs.len()].digest.clone();
                    self.blob(*repository, &digest, how).await;
                }
                Ask::Stranger { repository, of, image } => {
                    self.stranger(*repository, *of, *image).await;
                }
                Ask::Pull { repository, tag } => self.pull(*repository, *tag).await,
            }
        }
        self.seen
    }

    fn client(&self) -> Client {
        self.server.borrow().clone()
    }

    fn image(&self, number: usize, image: usize) -> &Image {
        let repository = self.repository(number);
        &repository.images[repository.pick(image)]
    }

    async fn note(&mut self, asked: Asked, text: String, came: Came) {
        self.answered.send_modify(|count| *count = count.saturating_add(1));
        if matches!(came, Came::Nothing) {
            // The product stops, and will be elsewhere in a moment; if it does not, the model has its say.
            drop(tokio::time::timeout(RESTART, self.server.changed()).await);
        }
        self.seen.push(Seen { asked, text, came });
    }

    fn repository(&self, number: usize) -> &Repository {
        &self.scene.repositories[number]
    }

    /// Gives the image that the tag was answered with.
    async fn tag(&mut self, number: usize, tag: usize, head: bool) -> Option<Image> {
        let repository = self.repository(number);
        let path = format!("/v2/{}/manifests/{}", repository.asked(), tag_name(tag));
        let method = if head { "HEAD" } else { "GET" };
        let reply = self.client().request(method, &path).try_send().await;
        let digest = reply.as_ref().ok().and_then(|reply| reply.header("Docker-Content-Digest"));
        let image = digest.and_then(|digest| repository.image_of(digest)).cloned();
        let came = match (reply, &image) {
            (Ok(reply), Some(image)) if reply.status == 200 => {
                let data = Data::from(image.bytes.clone());
                let expected = Expected { data: &data, digest: &image.digest };
                expected.judge(&reply, head)
            }
            (Ok(reply), None) if reply.status == 200 => {
                Came::Wrong(format!("an unknown revision: {reply:?}"))
            }
            (Ok(reply), _) => refusal(&reply, head),
            (Err(_no_answer), _) => Came::Nothing,
        };
        let answered = matches!(came, Came::Right { .. });
        self.note(Asked::Tag { repository: number, tag }, format!("{method} {path}"), came).await;
        image.filter(|_| answered)
    }

    async fn manifest(&mut self, number: usize, image: &Image, head: bool) {
        let path = format!("/v2/{}/manifests/{}", self.repository(number).asked(), image.digest);
        let method = if head { "HEAD" } else { "GET" };
        let request = self.client().request(method, &path);
        let data = Data::from(image.bytes.clone());
        let expected = Expected { data: &data, digest: &image.digest };
        let came = match request.try_send().await {
            Ok(reply) if reply.status == 200 => expected.judge(&reply, head),
            Ok(reply) => refusal(&reply, head),
            Err(_no_answer) => Came::Nothing,
        };
        let asked = Asked::Content { repository: number, digest: image.digest.clone() };
        self.note(asked, format!("{method} {path}"), came).await;
    }

    async fn blob(&mut self, number: usize, digest: &str, how: &Reading) {
        let repository = self.repository(number);
        let request = self.client().blob(&repository.asked(), digest);
        let data = repository.blob(digest).expect("it was picked from there").clone();
        let expected = Expected { data: &data, digest };
        let came = match how {
            Reading::Whole => expected.whole(request).await,
            Reading::Head => {
                expected.head(self.client().blob_head(&repository.asked(), digest)).await
            }
            Reading::Leave(at) => expected.leave(request, *at).await,
            Reading::Slow => expected.slowly(request).await,
            ranged => expected.ranged(request, ranged).await,
        };
        let asked = Asked::Content { repository: number, digest: digest.to_owned() };
        let text = format!("{how:?} {} {digest}", self.repository(number).asked());
        self.note(asked, text, came).await;
    }

    /// Asks a repository for a blob that only another one holds.
    async fn stranger(&mut self, number: usize, of: usize, image: usize) {
        let theirs = self.image(of, image).all_blobs();
        let theirs = theirs.last().expect("every image has blobs").digest.clone();
        if self.repository(number).blob(&theirs).is_some() {
            return;
        }
        let request = self.client().blob(&self.repository(number).asked(), &theirs);
        let came = match request.try_send().await {
            Ok(reply) if reply.status < 300 => Came::Right { digest: theirs.clone(), whole: true },
            Ok(reply) => refusal(&reply, false),
            Err(_no_answer) => Came::Nothing,
        };
        let text = format!("stranger {} {theirs}", self.repository(number).asked());
        self.note(Asked::Stranger { repository: number, digest: theirs }, text, came).await;
    }

    async fn pull(&mut self, number: usize, tag: usize) {
        let Some(image) = self.tag(number, tag, false).await else { return };
        for child in image.manifests().into_iter().skip(1) {
            self.manifest(number, child, false).await;
        }
        for blob in image.all_blobs() {
            self.blob(number, &blob.digest, &Reading::Whole).await;
        }
    }
}

fn one(range: Range<u64>) -> Vec<Range<u64>> {
    std::iter::once(range).collect()
}

/// What an answer that is no content means. An error says so in JSON.
fn refusal(reply: &Response, head: bool) -> Came {
    if reply.status < 400 {
        return Came::Wrong(format!("a strange status: {reply:?}"));
    }
    if reply.end != End::Clean {
        return Came::Cut;
    }
    let is_document = serde_json::from_slice::<serde_json::Value>(&reply.body)
        .is_ok_and(|document| document["errors"][0]["code"].is_string());
    if !head && !is_document {
        return Came::Wrong(format!("an error without a document: {reply:?}"));
    }
    Came::Refused(reply.status)
}

impl Expected<'_> {
    fn right(&self, whole: bool) -> Came {
        Came::Right { digest: self.digest.to_owned(), whole }
    }

    fn slice(&self, range: Range<u64>) -> bytes::Bytes {
        self.data.slice(range)
    }

    /// A place given in thousandths.
    fn place(&self, thousandths: u64) -> u64 {
        self.data.len() * thousandths / 1000
    }

    /// An answer 200 to GET or HEAD of the whole.
    fn judge(&self, reply: &Response, head: bool) -> Came {
        let length = self.data.len().to_string();
        if reply.header("Content-Length") != Some(&length)
            || reply.header("Docker-Content-Digest") != Some(self.digest)
        {
            return Came::Wrong(format!("headers {:?}", reply.headers));
        }
        if head {
            return self.right(false);
        }
        self.compare(reply, 0..self.data.len(), true)
    }

    /// An answer that was cut may have wrong bytes if upstream sent them; the model knows.
    fn compare(&self, reply: &Response, range: Range<u64>, whole: bool) -> Came {
        let got = to_u64(reply.body.len());
        if got > range.end - range.start {
            return Came::Wrong(format!("{got} bytes for {range:?}"));
        }
        if reply.body != self.slice(range.start..range.start + got) {
            // Whoever gets the last byte, to a clean end, gets nothing but right ones.
            return if reply.end == End::Clean && range.end == self.data.len() {
                Came::Wrong(format!("other bytes in {range:?}, {got} came"))
            } else {
                Came::Corrupt
            };
        }
        match reply.end {
            End::Clean if got == range.end - range.start => self.right(whole),
            End::Clean => Came::Wrong(format!("a clean end after {got} bytes of {range:?}")),
            End::Cut | End::Reset => Came::Cut,
        }
    }

    async fn whole(&self, request: Request) -> Came {
        match request.try_send().await {
            Ok(reply) if reply.status == 200 => self.judge(&reply, false),
            Ok(reply) => refusal(&reply, false),
            Err(_no_answer) => Came::Nothing,
        }
    }

    async fn head(&self, request: Request) -> Came {
        match request.try_send().await {
            Ok(reply) if reply.status == 200 => self.judge(&reply, true),
            Ok(reply) => refusal(&reply, true),
            Err(_no_answer) => Came::Nothing,
        }
    }

    async fn leave(&self, request: Request, at: u64) -> Came {
        let Ok(mut body) = request.try_open().await else { return Came::Nothing };
        if body.status != 200 {
            return refusal(&body.rest().await, false);
        }
        let mut taken = Vec::new();
        while to_u64(taken.len()) < self.place(at) {
            let Some(piece) = body.next().await else { return Came::Cut };
            taken.extend_from_slice(&piece);
        }
        if self.slice(0..to_u64(taken.len())) == taken {
            return Came::Left;
        }
        Came::Corrupt
    }

    async fn slowly(&self, request: Request) -> Came {
        let Ok(mut body) = request.try_open().await else { return Came::Nothing };
        if body.status != 200 {
            return refusal(&body.rest().await, false);
        }
        let mut taken = Vec::new();
        while let Some(piece) = body.next().await {
            taken.extend_from_slice(&piece);
            tokio::time::sleep(PAUSE).await;
        }
        let mut reply = body.rest().await;
        reply.body = taken.into();
        self.judge(&reply, false)
    }

    async fn ranged(&self, request: Request, how: &Reading) -> Came {
        let size = self.data.len();
        if size == 0 {
            // No range of nothing can be satisfied.
            return self.whole(request).await;
        }
        let inside = |from: u64, to: u64| {
            let start = self.place(from).min(size - 1);
            start..(self.place(to) + 1).clamp(start + 1, size)
        };
        let wanted: Vec<Range<u64>> = match how {
            Reading::Range(from, to) => one(inside(*from, *to)),
            Reading::From(from) => one(self.place(*from).min(size - 1)..size),
            Reading::Suffix(part) => one(size - self.place(*part).max(1)..size),
            Reading::Several(all) => all.iter().map(|(from, to)| inside(*from, *to)).collect(),
            _ => one(0..size),
        };
        let text: Vec<String> = match how {
            Reading::From(_) => vec![format!("{}-", wanted[0].start)],
            Reading::Suffix(_) => vec![format!("-{}", size - wanted[0].start)],
            _ => wanted.iter().map(|range| format!("{}-{}", range.start, range.end - 1)).collect(),
        };
        match request.range(&text.join(",")).try_send().await {
            Ok(reply) if reply.status == 206 => self.judge_parts(&reply, &wanted),
            // Ranges that overlap too much may be answered with the whole.
            Ok(reply) if reply.status == 200 && wanted.len() > 1 => self.judge(&reply, false),
            Ok(reply) => refusal(&reply, false),
            Err(_no_answer) => Came::Nothing,
        }
    }

    fn judge_parts(&self, reply: &Response, wanted: &[Range<u64>]) -> Came {
        let size = self.data.len();
        let line = |range: &Range<u64>| format!("bytes {}-{}/{size}", range.start, range.end - 1);
        if let [range] = wanted {
            if reply.header("Content-Range") != Some(&line(range)) {
                return Came::Wrong(format!("{:?} for {range:?}", reply.headers));
            }
            return self.compare(reply, range.clone(), false);
        }
        if reply.end != End::Clean {
            return Came::Cut;
        }
        let told = reply.header("Content-Length").and_then(|length| length.parse().ok());
        let got = parts(reply);
        let right: Vec<_> =
            wanted.iter().map(|range| (line(range), self.slice(range.clone()).to_vec())).collect();
        if told == Some(to_usize(to_u64(reply.body.len()))) && got == right {
            return self.right(false);
        }
        let last = wanted.iter().any(|range| range.end == size);
        if !last && got.iter().map(|(line, _)| line).eq(right.iter().map(|(line, _)| line)) {
            return Came::Corrupt;
        }
        let lines: Vec<_> = got.iter().map(|(line, _)| line).collect();
        Came::Wrong(format!("parts {lines:?} for {wanted:?}"))
    }
}
