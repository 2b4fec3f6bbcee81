use miniz_oxide::inflate::decompress_to_vec_zlib_with_limit;

use crate::error::{Error, Result};

/// An image as it is embedded: compressed in zlib's format, checksum included.
#[derive(Clone, Copy)]
pub struct Packed {
    zlib: &'static [u8],
    bytes: usize,
}

impl Packed {
    pub(crate) const fn new(zlib: &'static [u8], bytes: usize) -> Self {
        Packed { zlib, bytes }
    }

    /// Size of the image itself.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// # Errors
    /// [`Error::KernelsMissing`] when the program's file is damaged.
    pub fn unpack(&self) -> Result<Vec<u8>> {
        let damaged = |what: String| Error::KernelsMissing { reason: format!("an embedded image is damaged ({what})") };
        let image = decompress_to_vec_zlib_with_limit(self.zlib, self.bytes).map_err(|e| damaged(e.to_string()))?;
        match image.len() == self.bytes {
            true => Ok(image),
            false => Err(damaged(format!("{} bytes of {}", image.len(), self.bytes))),
        }
    }

    /// An image that is text.
    ///
    /// # Errors
    /// As [`Packed::unpack`].
    pub fn unpack_text(&self) -> Result<String> {
        String::from_utf8(self.unpack()?)
            .map_err(|e| Error::KernelsMissing { reason: format!("an embedded image is damaged ({e})") })
    }
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes, {} packed", self.bytes, self.zlib.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_comes_out_as_it_went_in_and_a_damaged_one_is_refused() {
        // zlib's header, one stored block "graft", and its checksum.
        static WHOLE: [u8; 16] =
            [0x78, 0x01, 0x01, 5, 0, 0xfa, 0xff, b'g', b'r', b'a', b'f', b't', 0x06, 0x33, 0x02, 0x15];
        let text = Packed::new(&WHOLE, 5);
        assert_eq!(text.unpack_text().unwrap(), "graft");
        static FLIPPED: [u8; 16] = {
            let mut bytes = WHOLE;
            bytes[8] ^= 1;
            bytes
        };
        for bad in
            [Packed::new(&FLIPPED, 5), Packed::new(&WHOLE, 4), Packed::new(&WHOLE, 6), Packed::new(&WHOLE[..9], 5)]
        {
            assert!(matches!(bad.unpack(), Err(Error::KernelsMissing { .. })));
        }
    }
}
