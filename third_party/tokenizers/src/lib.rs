//! A C ABI over Hugging Face's `tokenizers`, as small as the engine needs it.
//!
//! See worker/engine/tokenizer/tokenizers_c.h for the contract. Nothing unwinds out of here: a panic
//! becomes an error like any other.

use std::any::Any;
use std::os::raw::c_char;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr;
use std::slice;

use tokenizers::Tokenizer;

/// Bytes handed to the caller, who gives them back to `qpruner_tokenizers_free_bytes`.
#[repr(C)]
pub struct Bytes {
    data: *mut u8,
    size: usize,
}

/// Ids handed to the caller, who gives them back to `qpruner_tokenizers_free_ids`.
#[repr(C)]
pub struct Ids {
    data: *mut u32,
    size: usize,
}

impl Bytes {
    fn new(bytes: Vec<u8>) -> Self {
        let boxed = bytes.into_boxed_slice();
        let size = boxed.len();
        Bytes { data: Box::into_raw(boxed) as *mut u8, size }
    }
}

impl Ids {
    fn new(ids: Vec<u32>) -> Self {
        let boxed = ids.into_boxed_slice();
        let size = boxed.len();
        Ids { data: Box::into_raw(boxed) as *mut u32, size }
    }
}

fn panic_text(panic: Box<dyn Any + Send>) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| text.to_string())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_string());
    format!("the tokenizers library panicked: {text}")
}

/// Runs `work`; on success writes its value to `out` and returns true, otherwise writes the message
/// to `error` and returns false.
///
/// Safety: `out` and `error` must be valid for writes.
unsafe fn guard<T>(
    out: *mut T,
    error: *mut Bytes,
    work: impl FnOnce() -> Result<T, String>,
) -> bool {
    let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(panic_text(panic)));
    match result {
        Ok(value) => {
            ptr::write(out, value);
            true
        }
        Err(message) => {
            ptr::write(error, Bytes::new(message.into_bytes()));
            false
        }
    }
}

/// Safety: `data` must be valid for reads of `size` elements, or `size` be 0.
unsafe fn view<'a, T>(data: *const T, size: usize) -> &'a [T] {
    if size == 0 {
        &[]
    } else {
        slice::from_raw_parts(data, size)
    }
}

/// # Safety
/// As tokenizers_c.h says.
#[no_mangle]
pub unsafe extern "C" fn qpruner_tokenizers_open(
    json: *const c_char,
    size: usize,
    out: *mut *mut Tokenizer,
    error: *mut Bytes,
) -> bool {
    guard(out, error, || {
        let mut tokenizer = Tokenizer::from_bytes(view(json as *const u8, size))
            .map_err(|e| e.to_string())?;
        // Cutting and padding are the caller's business, not the file's.
        tokenizer.with_truncation(None).map_err(|e| e.to_string())?;
        tokenizer.with_padding(None);
        Ok(Box::into_raw(Box::new(tokenizer)))
    })
}

/// # Safety
/// As tokenizers_c.h says.
#[no_mangle]
pub unsafe extern "C" fn qpruner_tokenizers_close(tokenizer: *mut Tokenizer) {
    if !tokenizer.is_null() {
        let _ = catch_unwind(AssertUnwindSafe(|| drop(Box::from_raw(tokenizer))));
    }
}

/// # Safety
/// As tokenizers_c.h says.
#[no_mangle]
pub unsafe extern "C" fn qpruner_tokenizers_encode(
    tokenizer: *const Tokenizer,
    text: *const c_char,
    size: usize,
    add_special_tokens: bool,
    out: *mut Ids,
    error: *mut Bytes,
) -> bool {
    guard(out, error, || {
        let text = std::str::from_utf8(view(text as *const u8, size)).map_err(|e| e.to_string())?;
        let encoding =
            (*tokenizer).encode_fast(text, add_special_tokens).map_err(|e| e.to_string())?;
        Ok(Ids::new(encoding.get_ids().to_vec()))
    })
}

/// # Safety
/// As tokenizers_c.h says.
#[no_mangle]
pub unsafe extern "C" fn qpruner_tokenizers_decode(
    tokenizer: *const Tokenizer,
    ids: *const u32,
    size: usize,
    skip_special_tokens: bool,
    out: *mut Bytes,
    error: *mut Bytes,
) -> bool {
    guard(out, error, || {
        let text =
            (*tokenizer).decode(view(ids, size), skip_special_tokens).map_err(|e| e.to_string())?;
        Ok(Bytes::new(text.into_bytes()))
    })
}

/// # Safety
/// As tokenizers_c.h says.
#[no_mangle]
pub unsafe extern "C" fn qpruner_tokenizers_max_id(
    tokenizer: *const Tokenizer,
    out: *mut i64,
    error: *mut Bytes,
) -> bool {
    guard(out, error, || {
        // Not the number of tokens: ids may have holes.
        Ok((*tokenizer).get_vocab(true).values().max().map_or(-1, |id| i64::from(*id)))
    })
}

/// # Safety
/// As tokenizers_c.h says.
#[no_mangle]
pub unsafe extern "C" fn qpruner_tokenizers_token_to_id(
    tokenizer: *const Tokenizer,
    token: *const c_char,
    size: usize,
    out: *mut i64,
    error: *mut Bytes,
) -> bool {
    guard(out, error, || {
        let token =
            std::str::from_utf8(view(token as *const u8, size)).map_err(|e| e.to_string())?;
        Ok((*tokenizer).token_to_id(token).map_or(-1, i64::from))
    })
}

/// # Safety
/// As tokenizers_c.h says.
#[no_mangle]
pub unsafe extern "C" fn qpruner_tokenizers_free_bytes(bytes: Bytes) {
    if !bytes.data.is_null() {
        drop(Box::from_raw(ptr::slice_from_raw_parts_mut(bytes.data, bytes.size)));
    }
}

/// # Safety
/// As tokenizers_c.h says.
#[no_mangle]
pub unsafe extern "C" fn qpruner_tokenizers_free_ids(ids: Ids) {
    if !ids.data.is_null() {
        drop(Box::from_raw(ptr::slice_from_raw_parts_mut(ids.data, ids.size)));
    }
}
