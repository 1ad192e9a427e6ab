"""Strings as PDFium's C functions take and return them. Loaded in render children only.

A function that returns a string is called twice: first without a buffer, for the size in bytes, then with a buffer of this size.
https://pdfium.googlesource.com/pdfium/+/refs/heads/chromium/8149/public/fpdf_doc.h
"""

import ctypes
from typing import Any

import pypdfium2.raw as pdfium


def read_text(function: "ctypes._FuncPointer", *args: object) -> str:
    """The text that a function of PDFium writes as UTF-16LE, without its terminator."""
    size = function(*args, None, 0)
    buffer = (ctypes.c_ushort * (size // 2 + 1))()
    function(*args, buffer, size)
    return bytes(buffer)[: max(size - 2, 0)].decode("utf-16-le", "replace")


def read_bytes(function: "ctypes._FuncPointer", *args: object) -> bytes:
    """The bytes that a function of PDFium writes, without their terminator."""
    size = function(*args, None, 0)
    buffer = ctypes.create_string_buffer(size)
    function(*args, buffer, size)
    return buffer.value


def utf16(text: str) -> "ctypes.Array[Any]":
    """ASCII text as an argument for PDFium: UTF-16LE with a terminator."""
    string: ctypes.Array[Any] = (pdfium.FPDF_WCHAR * (len(text) + 1))(*text.encode("ascii"))
    return string
