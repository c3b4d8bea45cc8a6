//! Puts another checksum of a request's body in the place of the SDK's own (CRC32), for stores that refuse it.
//!
//! Invariant: never by `ChecksumAlgorithm::Md5`, which sends a header that S3 does not know.

use aws_sdk_s3::config::http::HttpRequest;
use aws_smithy_types::base64;
use md5::{Digest, Md5};

use super::learned::Checksum;

/// Before the request is signed.
pub(super) fn replace(request: &mut HttpRequest, checksum: Checksum) {
    if checksum == Checksum::Crc32 {
        return;
    }
    let digest = request.body().bytes().map(Md5::digest);
    let headers = request.headers_mut();
    headers.remove("x-amz-checksum-crc32");
    headers.remove("x-amz-sdk-checksum-algorithm");
    if let (Checksum::ContentMd5, Some(digest)) = (checksum, digest) {
        headers.insert("content-md5", base64::encode(digest));
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_s3::primitives::SdkBody;

    use super::*;

    #[test]
    fn one_checksum_takes_the_place_of_the_other() {
        for (checksum, crc32, md5) in [
            (Checksum::Crc32, Some("sent"), None),
            // RFC 1321, of "abc"
            (Checksum::ContentMd5, None, Some("kAFQmDzST7DWlj99KOF/cg==")),
            (Checksum::None, None, None),
        ] {
            let mut request = HttpRequest::new(SdkBody::from("abc"));
            request.headers_mut().insert("x-amz-checksum-crc32", "sent");
            replace(&mut request, checksum);
            let headers = request.headers();
            assert_eq!((headers.get("x-amz-checksum-crc32"), headers.get("content-md5")), (crc32, md5));
        }
    }
}
