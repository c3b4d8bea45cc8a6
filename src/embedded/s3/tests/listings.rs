use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::EncodingType;
use percent_encoding::percent_decode_str;

use super::*;

fn names(page: &ListObjectsV2Output) -> Vec<&str> {
    page.contents().iter().filter_map(|object| object.key()).collect()
}

fn prefixes(page: &ListObjectsV2Output) -> Vec<&str> {
    page.common_prefixes().iter().filter_map(|prefix| prefix.prefix()).collect()
}

/// All pages of a listing; entries are keys and common prefixes as they came.
async fn walk(client: &Client, prefix: &str, delimiter: Option<&str>, max_keys: i32) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    let mut token = None;
    loop {
        let page = client
            .list_objects_v2()
            .bucket(BUCKET)
            .prefix(prefix)
            .set_delimiter(delimiter.map(str::to_owned))
            .max_keys(max_keys)
            .set_continuation_token(token.take())
            .send()
            .await
            .unwrap();
        let entries: Vec<_> = names(&page).into_iter().chain(prefixes(&page)).map(str::to_owned).collect();
        assert_eq!(page.key_count(), Some(entries.len() as i32));
        pages.push(entries);
        assert_eq!(page.is_truncated(), Some(page.next_continuation_token().is_some()));
        token = page.next_continuation_token;
        if token.is_none() {
            return pages;
        }
    }
}

#[tokio::test]
async fn a_listing_of_2500_keys_comes_in_three_pages_of_at_most_1000() {
    let (server, client) = server().await;
    server.store().put_all(BUCKET, keys(2500), "body").unwrap();
    server.store().put(BUCKET, "run", "before").unwrap();
    server.store().put(BUCKET, "runs0", "after").unwrap();
    let pages = walk(&client, "runs/", None, 5000).await;
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [1000, 1000, 500]);
    assert_eq!(pages.concat(), keys(2500));
    let exact = walk(&client, "runs/00", None, 1000).await;
    assert_eq!(
        exact.iter().map(Vec::len).collect::<Vec<_>>(),
        [1000],
        "a full page need not be followed by an empty one"
    );
}

#[tokio::test]
async fn keys_sort_bytewise_and_prefixes_are_literal() {
    let (server, client) = server().await;
    let sorted = ["A", "a", "a!", "a/", "a//b", "a/b", "a0", "ab", "b", "é", "\u{fffd}", "😀"];
    server.store().put_all(BUCKET, sorted.map(str::to_owned), "body").unwrap();
    assert_eq!(walk(&client, "", None, 1000).await.concat(), sorted);
    assert_eq!(walk(&client, "a/", None, 1000).await.concat(), ["a/", "a//b", "a/b"]);
    assert_eq!(walk(&client, "a", None, 2).await.len(), 4);
    assert!(walk(&client, "nothing", None, 1000).await.concat().is_empty());
}

#[tokio::test]
async fn start_after_is_exclusive_and_need_not_exist() {
    let (server, client) = server().await;
    server.store().put_all(BUCKET, ["a", "b", "c"].map(str::to_owned), "body").unwrap();
    for (after, expected) in [("b", vec!["c"]), ("aa", vec!["b", "c"]), ("c", vec![])] {
        let page = client.list_objects_v2().bucket(BUCKET).start_after(after).send().await.unwrap();
        assert_eq!(names(&page), expected);
        assert_eq!(page.start_after(), Some(after));
    }
}

#[tokio::test]
async fn a_page_goes_on_although_what_it_showed_is_deleted() {
    let (server, client) = server().await;
    server.store().put_all(BUCKET, keys(5), "body").unwrap();
    let first = client.list_objects_v2().bucket(BUCKET).max_keys(2).send().await.unwrap();
    batch_of(&client, &names(&first)).send().await.unwrap();
    let token = first.next_continuation_token().unwrap();
    let rest = client.list_objects_v2().bucket(BUCKET).continuation_token(token).send().await.unwrap();
    assert_eq!(names(&rest), ["runs/00002.bin", "runs/00003.bin", "runs/00004.bin"]);
}

#[tokio::test]
async fn a_delimiter_folds_keys_into_common_prefixes_across_pages() {
    let (server, client) = server().await;
    let stored = ["a", "d1/x", "d1/y", "d2/deep/z", "d2/x", "e", "f//x", "f/x"];
    server.store().put_all(BUCKET, stored.map(str::to_owned), "body").unwrap();
    for max_keys in 1..=6 {
        let mut all = walk(&client, "", Some("/"), max_keys).await.concat();
        all.sort_unstable();
        assert_eq!(all, ["a", "d1/", "d2/", "e", "f/"], "{max_keys} a page");
    }
    assert_eq!(walk(&client, "f/", Some("/"), 1000).await.concat(), ["f/x", "f//"]);
    // A delimiter may be long, and it folds where it first appears.
    server.store().put(BUCKET, "d1/x/more", "body").unwrap();
    let folded = walk(&client, "d", Some("/x"), 1).await.concat();
    assert_eq!(folded, ["d1/x", "d1/y", "d2/deep/z", "d2/x"]);
    let page = client.list_objects_v2().bucket(BUCKET).delimiter("/").start_after("d1/x").send().await.unwrap();
    assert_eq!((names(&page), prefixes(&page)), (vec!["e"], vec!["d2/", "f/"]));
}

#[tokio::test]
async fn common_prefixes_end_right_at_the_end_of_unicode() {
    let (server, client) = server().await;
    let last = char::MAX.to_string();
    server.store().put_all(BUCKET, [format!("a{last}1"), format!("a{last}2"), format!("{last}x")], "body").unwrap();
    let all = walk(&client, "", Some(&last), 1).await.concat();
    assert_eq!(all, [format!("a{last}"), last]);
}

#[tokio::test]
async fn url_encoding_is_echoed_and_carries_any_key() {
    let (server, client) = server().await;
    let odd = ["a b", "a%20b", "a+b", "a/b", "bell\u{7}", "nul\u{0}", "line\r\n", "test_file(3).png", "ü~*", "😀"];
    server.store().put_all(BUCKET, odd.map(str::to_owned), "body").unwrap();
    let page = client.list_objects_v2().bucket(BUCKET).encoding_type(EncodingType::Url).send().await.unwrap();
    assert_eq!(page.encoding_type(), Some(&EncodingType::Url));
    let mut sorted = odd.to_vec();
    sorted.sort_unstable();
    let decoded: Vec<_> = names(&page)
        .into_iter()
        .map(|name| percent_decode_str(&name.replace('+', " ")).decode_utf8().unwrap().into_owned())
        .collect();
    assert_eq!(decoded, sorted);
    for encoded in ["a+b", "a%2520b", "a%2Bb", "a/b", "bell%07", "nul%00", "test_file%283%29.png", "%C3%BC%7E*"] {
        assert!(names(&page).contains(&encoded), "{encoded}");
    }
    let page = client
        .list_objects_v2()
        .bucket(BUCKET)
        .encoding_type(EncodingType::Url)
        .prefix("a ")
        .delimiter(" ")
        .start_after("a !")
        .send()
        .await
        .unwrap();
    assert_eq!((page.prefix(), page.delimiter(), page.start_after()), (Some("a+"), Some("+"), Some("a+%21")));
    let raw = client.list_objects_v2().bucket(BUCKET).prefix("a").send().await.unwrap();
    assert_eq!((raw.encoding_type(), names(&raw)), (None, vec!["a b", "a%20b", "a+b", "a/b"]));
}

#[tokio::test]
async fn a_page_can_end_on_any_key() {
    let (server, client) = server().await;
    let odd = ["a b", "a%20b", "a+b", "bell\u{7}", "nul\u{0}", "ü", "😀"];
    server.store().put_all(BUCKET, odd.map(str::to_owned), "body").unwrap();
    let mut seen = 0;
    let mut token = None;
    loop {
        let page = client
            .list_objects_v2()
            .bucket(BUCKET)
            .max_keys(1)
            .encoding_type(EncodingType::Url)
            .set_continuation_token(token.take())
            .send()
            .await
            .unwrap();
        seen += page.contents().len();
        token = page.next_continuation_token;
        if token.is_none() {
            break;
        }
    }
    assert_eq!(seen, odd.len());
}

#[tokio::test]
async fn what_no_page_can_be_made_of_is_refused() {
    let (server, client) = server().await;
    server.store().put(BUCKET, "a", "body").unwrap();
    let list = || client.list_objects_v2().bucket(BUCKET);
    assert_eq!(refusal(list().continuation_token("made up").send().await), refused("InvalidArgument", 400));
    assert_eq!(refusal(list().max_keys(-1).send().await), refused("InvalidArgument", 400));
    assert_eq!(
        refusal(list().encoding_type(EncodingType::from("base64")).send().await),
        refused("InvalidArgument", 400)
    );
    let none = list().max_keys(0).send().await.unwrap();
    assert_eq!((none.key_count(), none.is_truncated()), (Some(0), Some(false)));
    assert_eq!(refusal(client.list_objects_v2().bucket("nowhere").send().await), refused("NoSuchBucket", 404));
}

#[tokio::test]
async fn the_old_listing_goes_on_after_a_key_or_a_common_prefix() {
    let (server, client) = server().await;
    server.store().put_all(BUCKET, ["a/x", "a/y", "b", "c"].map(str::to_owned), "body").unwrap();
    let list = || client.list_objects().bucket(BUCKET).max_keys(1);
    let first = list().send().await.unwrap();
    assert_eq!((first.contents()[0].key(), first.next_marker()), (Some("a/x"), None));
    let second = list().marker("a/x").send().await.unwrap();
    assert_eq!(second.contents()[0].key(), Some("a/y"));
    let folded = list().delimiter("/").send().await.unwrap();
    assert_eq!((folded.is_truncated(), folded.next_marker()), (Some(true), Some("a/")));
    let next = list().delimiter("/").marker("a/").send().await.unwrap();
    assert_eq!(next.contents()[0].key(), Some("b"));
}
