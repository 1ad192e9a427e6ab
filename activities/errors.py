"""Every refusal and fault that SiteLink names, in one flat tree.

    SiteLinkError
      DocumentError    NotAPdf UnreadablePdf PasswordRequired NoPages PdfPortfolio TooManyPages
                       FileTooLarge                                                               final, the whole upload
      PageError        PageUnreadable PageTooLarge                                                final, one sheet
      RenderFault      RenderTimeout RenderCrashed RenderOutOfMemory                              one sheet, after fresh tries
      BucketError      StorageUnavailable StorageDenied NoSuchBucket ClockSkewed                  retried
      ObjectMissing    no such object in a bucket that answers
      SourceMissing    the PDF is gone from a bucket that answers                                 final, the whole upload
      SourceAltered    the PDF is not the one that was accepted                                   final after fresh reads
      ShareFull        one upload has as many sheets on a host as it may                           retried
      TilesMissing     the tiles are not on this host's scratch any more: tile the page again
      WorkerLost       the sheet's host disappeared too often                                     final, one sheet
      UploadNotFound   never accepted, or marked deleted
      UnreadableRecord DamagedRecord NewerSchema                                                  a warning of one upload; retried
      Terminated       an operator ended the run
      RequestError     InvalidRequest MalformedId SheetNotFound IdempotencyConflict AlreadyFinished
                       ForeignHost ForeignOrigin BadSignature                                     the API's answer to one request
      TemporalUnavailable                                                                         the API's answer, for now

The class name is the ``ApplicationError.type`` in Temporal, the ``type`` of the API's problem documents and a sheet's ``reason``.
"""

from datetime import timedelta


class SiteLinkError(Exception):
    """Base of every named error; the message is a sentence for a person and gives the value and the limit."""

    final = False
    """True when trying again cannot help."""

    again_in: timedelta | None = None
    """When to try again; None where the caller's retry policy says it."""

    @property
    def type(self) -> str:
        """The name that crosses the wire."""
        return type(self).__name__


class DocumentError(SiteLinkError):
    """The document as a whole cannot be used."""

    final = True


class NotAPdf(DocumentError):
    """The bytes are no PDF."""


class UnreadablePdf(DocumentError):
    """It calls itself a PDF but its structure cannot be read."""


class PasswordRequired(DocumentError):
    """It opens only with a password."""


class NoPages(DocumentError):
    """It has no page."""


class PdfPortfolio(DocumentError):
    """It is a collection of files, and its drawings are other PDFs inside it."""


class TooManyPages(DocumentError):
    """More pages than the published limit."""


class FileTooLarge(DocumentError):
    """More bytes than the published limit."""


class PageError(SiteLinkError):
    """One page cannot be used; the others go on."""

    final = True


class PageUnreadable(PageError):
    """The page cannot be loaded or has no area."""


class PageTooLarge(PageError):
    """The page does not fit the pixel budget at any useful resolution."""


class RenderFault(SiteLinkError):
    """The render child failed on one page.

    Args:
        message: What happened, with the limit.
        fresh_child: Whether the child had drawn no page before this one; only then the page itself is to blame.
    """

    tries = 3
    """Fresh children that may fail on one page before the fault is final."""

    def __init__(self, message: str, *, fresh_child: bool = True) -> None:
        super().__init__(message)
        self.fresh_child = fresh_child


class RenderTimeout(RenderFault):
    """The child used up its CPU or wall time."""

    tries = 2


class RenderCrashed(RenderFault):
    """The child died."""


class RenderOutOfMemory(RenderFault):
    """The child reached its memory limit. Final at one resolution only: the workflow halves it once, and begins anew."""

    tries = 2


class WorkerLost(SiteLinkError):
    """The host that held the sheet's tiles disappeared, again and again."""

    final = True


class ObjectMissing(SiteLinkError):
    """The bucket answers and has no such object."""


class SourceMissing(SiteLinkError):
    """The PDF of an accepted upload is gone from the bucket."""

    final = True


class SourceAltered(SiteLinkError):
    """The PDF in the bucket is not the one that was accepted."""

    tries = 3
    """Reads that may give something else before it is final. One may have been cut off, or lied about, on its way; the same from three,
    each of which takes as long as a whole download, and the second and third half a minute after the one before, is what lies there."""

    again_in = timedelta(seconds=30)


class ShareFull(SiteLinkError):
    """As many sheets of one upload as may be are on a host."""

    again_in = timedelta(minutes=1)
    """Seldom enough that ``GET`` names what holds those sheets up, which is tried more often."""


class TilesMissing(SiteLinkError):
    """The tiles of a sheet are not on this host any more."""

    final = True


class UploadNotFound(SiteLinkError):
    """The upload was never accepted, or it is marked deleted."""

    final = True


class UnreadableRecord(SiteLinkError):
    """A record in the bucket cannot be read. It is a warning of its upload, and nobody writes over it who cannot read it."""


class DamagedRecord(UnreadableRecord):
    """A record in the bucket is not what was written there."""


class NewerSchema(UnreadableRecord):
    """A record in the bucket was written by a newer release; while workers are being replaced, one that can read it comes."""


class Terminated(SiteLinkError):
    """An operator ended the run before it was done."""

    final = True


class BucketError(SiteLinkError):
    """The bucket refused or did not answer; never final for a running upload."""


class StorageUnavailable(BucketError):
    """The bucket does not answer, or answers that it cannot now."""


class StorageDenied(BucketError):
    """The bucket refuses these credentials."""


class NoSuchBucket(BucketError):
    """There is no bucket of this name."""


class ClockSkewed(BucketError):
    """This machine's clock is wrong, so the bucket takes none of its signatures.

    Waiting alone does not help, nor would giving up: it is retried and shown as a warning, like wrong credentials,
    and goes on once somebody has set the clock.
    """


class RequestError(SiteLinkError):
    """The API cannot do what one request asks."""

    final = True


class InvalidRequest(RequestError):
    """The request cannot be understood."""


class MalformedId(RequestError):
    """A name in the path is no id."""


class SheetNotFound(RequestError):
    """The upload has no such sheet."""


class IdempotencyConflict(RequestError):
    """The Idempotency-Key was used for something else."""


class AlreadyFinished(RequestError):
    """There is nothing left to do that about."""


class ForeignHost(RequestError):
    """The request names a host that this server is not."""


class ForeignOrigin(RequestError):
    """A page of another site sent the request."""


class BadSignature(RequestError):
    """The request's signature is missing, wrong or too old."""


class TemporalUnavailable(SiteLinkError):
    """Temporal does not answer."""


def is_named(name: str) -> bool:
    """Whether it is the name of an error of this module: only what such an error says is meant for a client."""
    kind = globals().get(name)
    return isinstance(kind, type) and issubclass(kind, SiteLinkError)
