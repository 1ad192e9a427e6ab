"""The errors that SiteLink names, in one flat tree.

    SiteLinkError
      DocumentError    NotAPdf UnreadablePdf PasswordRequired NoPages PdfPortfolio TooManyPages
                       FileTooLarge TooManyTiles                                                  final, the whole upload
      PageError        PageUnreadable PageTooLarge                                                final, one sheet
      RenderFault      RenderTimeout RenderCrashed RenderOutOfMemory                              final after fresh tries, one sheet
      BucketError      StorageUnavailable StorageDenied NoSuchBucket ClockSkewed                  retried
      ObjectMissing    no such object in a bucket that answers
      SourceMissing    the PDF is gone from a bucket that answers                                 final, the whole upload
      SourceAltered    the PDF in the bucket is not the accepted one                              final after fresh reads, the whole upload
      ShareFull        an upload has its full share of a host's scratch                            retried
      SheetAltered     the tiles of a sheet are not those of its sheet.json: its layout stays       final, one sheet
      TilesMissing     the tiles are no longer on the host's scratch                               the page is tiled again
      WorkerLost       the sheet's host disappeared too often                                     final, one sheet
      UploadNotFound   the upload was never accepted, or is marked deleted
      UnreadableRecord DamagedRecord NewerSchema                                                  retried, and a warning of the upload
      Terminated       an operator ended the run                                                  final, the whole upload
      RequestError     InvalidRequest MalformedId SheetNotFound IdempotencyConflict AlreadyFinished
                       DigestMismatch EncodedContent SourceForbidden
                       ForeignHost ForeignOrigin BadSignature CredentialRequired NotAllowed
                       PlanNotFound WebhookNotFound TooManyRequests QuotaExceeded PartsIncomplete
                       UploadBusy PasswordRefused                                                  the API's answer to one request
      TemporalUnavailable                                                                         the API's answer until Temporal is back
      PayloadUnreadable the key of an encrypted payload in Temporal is missing                     retried
      WebhookError     WebhookUnreachable WebhookRefused                                          retried for a day
                       WebhookForbidden WebhookGone                                               final, one delivery
      KeysUnavailable  the public keys of tokens are not known yet                                the API's answer until they are
      ServerBusy                                                                                  the API's answer until it has less to do

The class name is the ``ApplicationError.type`` in Temporal, the ``type`` of the API's problem documents and a sheet's ``reason``.
"""

from datetime import timedelta


class SiteLinkError(Exception):
    """Base of every named error; the message is a sentence for a person and gives the value and the limit."""

    final = False
    """Whether trying again cannot help."""

    retry_delay: timedelta | None = None
    """How long to wait before the next try; None where the activity's retry policy decides."""

    @property
    def type(self) -> str:
        """The error's name on the wire."""
        return type(self).__name__


class DocumentError(SiteLinkError):
    """The document as a whole cannot be used."""

    final = True


class NotAPdf(DocumentError):
    """The bytes are no PDF."""


class UnreadablePdf(DocumentError):
    """The document has a PDF's header, but its structure cannot be read."""


class PasswordRequired(DocumentError):
    """The document opens only with a password, which is missing or wrong."""


class NoPages(DocumentError):
    """The document has no page."""


class PdfPortfolio(DocumentError):
    """The document is a collection of files, and its drawings are other PDFs inside it."""


class TooManyPages(DocumentError):
    """The document has more pages than the published limit."""


class FileTooLarge(DocumentError):
    """The document has more bytes than the published limit."""


class TooManyTiles(DocumentError):
    """The document makes more tiles than the published limit. As the reason of a sheet: its page alone does, and the others go on."""


class PageError(SiteLinkError):
    """One page cannot be used; the others go on."""

    final = True


class PageUnreadable(PageError):
    """The page cannot be loaded or has no area."""


class PageTooLarge(PageError):
    """The page does not fit the pixel budget at any useful resolution, or its longer side is over the published limit."""


class RenderFault(SiteLinkError):
    """The render child failed on one page.

    Args:
        message: What happened, with the limit.
        fresh_child: Whether the child had drawn no page before this one. Only then is the page itself to blame.
        is_certain: Whether another try would end the same way, so that the fault is final at once.
    """

    tries = 3
    """The fault is final when this many fresh children have failed on one page."""

    def __init__(self, message: str, *, fresh_child: bool = True, is_certain: bool = False) -> None:
        super().__init__(message)
        self.fresh_child = fresh_child
        self.is_certain = is_certain


class RenderTimeout(RenderFault):
    """The child used up its CPU or wall time.

    A page takes the same CPU time on every try, unless other work holds the caches and the memory. So a fault of CPU time is certain where
    a fresh child reached the limit and no other child of its pool worked meanwhile: the second try would only burn the limit again. Wall
    time says nothing about the page, because the machine may have been busy.
    """

    tries = 2


class RenderCrashed(RenderFault):
    """The child died."""


class RenderOutOfMemory(RenderFault):
    """The child reached its memory limit. Final for one resolution: the workflow halves the resolution once and tries again."""

    tries = 2


class WorkerLost(SiteLinkError):
    """The host that held the sheet's tiles disappeared, and so did the hosts that tiled the sheet again."""

    final = True


class ObjectMissing(SiteLinkError):
    """The bucket answers, but has no such object."""


class SourceMissing(SiteLinkError):
    """The PDF of an accepted upload is gone from the bucket."""

    final = True


class SourceAltered(SiteLinkError):
    """The PDF in the bucket is not the one that was accepted."""

    tries = 3
    """The error is final when this many downloads differed from the accepted PDF. One download may be cut off or altered on its way.
    When three downloads differ, half a minute apart, the object itself is another one."""

    retry_delay = timedelta(seconds=30)
    """Delay before the next download."""


class ShareFull(SiteLinkError):
    """An upload has as many sheets on a host's scratch as one upload may have."""

    retry_delay = timedelta(minutes=1)
    """Delay before the next attempt. The API shows the failure of the activity that was tried most often. The delay is long, so that this
    is the upload of another sheet, whose failure is the cause, and not this error."""


class SheetAltered(SiteLinkError):
    """The tiles of a sheet in the bucket are not those that its sheet.json describes, so they are not moved to another layout."""

    final = True


class TilesMissing(SiteLinkError):
    """The tiles of a sheet are no longer on this host."""

    final = True


class UploadNotFound(SiteLinkError):
    """The upload was never accepted, or it is marked deleted."""

    final = True


class UnreadableRecord(SiteLinkError):
    """A record in the bucket cannot be read. The upload shows a warning, and the record is not written over."""


class DamagedRecord(UnreadableRecord):
    """A record in the bucket is damaged."""


class NewerSchema(UnreadableRecord):
    """A record in the bucket was written by a newer release. Activities are retried until a worker of that release reads it."""


class Terminated(SiteLinkError):
    """An operator ended the run before it was done."""

    final = True


class BucketError(SiteLinkError):
    """The bucket refused a request or did not answer; never final for a running upload."""


class StorageUnavailable(BucketError):
    """The bucket does not answer, or answers that it is unavailable."""


class StorageDenied(BucketError):
    """The bucket refuses these credentials."""


class NoSuchBucket(BucketError):
    """There is no bucket of this name."""


class ClockSkewed(BucketError):
    """This machine's clock is wrong, so the bucket refuses its signatures.

    The request is retried and a warning is shown, as for wrong credentials, until somebody has set the clock.
    """


class RequestError(SiteLinkError):
    """The API refuses one request."""

    final = True


class InvalidRequest(RequestError):
    """The request cannot be understood."""


class DigestMismatch(RequestError):
    """The body is not the one whose digest was announced."""


class EncodedContent(RequestError):
    """The body is compressed or otherwise encoded."""


class SourceForbidden(RequestError):
    """The sender of the request may not make an upload of this object of the bucket."""


class MalformedId(RequestError):
    """A name in the path is not an id."""


class SheetNotFound(RequestError):
    """The upload has no such sheet."""


class IdempotencyConflict(RequestError):
    """The Idempotency-Key was used for another request."""


class AlreadyFinished(RequestError):
    """The upload or the sheet has finished, so the request has nothing to change."""


class UploadBusy(RequestError):
    """A run of the upload, or another conversion, works on its sheets."""

    final = False
    retry_delay = timedelta(seconds=5)


class PasswordRefused(RequestError):
    """The server cannot keep the password of a document secret, so it takes none."""


class ForeignHost(RequestError):
    """The request names a host that is not this server."""


class ForeignOrigin(RequestError):
    """A page of another site sent the request."""


class BadSignature(RequestError):
    """The request's signature is missing, wrong or too old."""


class CredentialRequired(RequestError):
    """The request has no credential, or one that is not accepted."""


class NotAllowed(RequestError):
    """The credential does not allow this request."""


class PlanNotFound(RequestError):
    """The sender of the request has no such plan."""


class WebhookNotFound(RequestError):
    """There is no such webhook or delivery."""


class TooManyRequests(RequestError):
    """There are too many requests of this client or organization."""

    final = False


class QuotaExceeded(RequestError):
    """The organization has too many unfinished uploads."""

    final = False
    retry_delay = timedelta(minutes=1)


class PartsIncomplete(RequestError):
    """The parts that the bucket has are not the whole file. They stay, and the upload can be completed later."""


class WebhookError(SiteLinkError):
    """A webhook could not be delivered. The message has neither the address nor the answer's body."""


class WebhookUnreachable(WebhookError):
    """The receiver of a webhook does not answer."""


class WebhookRefused(WebhookError):
    """The receiver of a webhook answered with another status than 2xx."""


class WebhookForbidden(WebhookError):
    """The address of a webhook leads into a network to which no webhook is sent."""

    final = True


class WebhookGone(WebhookError):
    """The receiver of a webhook wants no more of them, or the webhook was removed."""

    final = True


class KeysUnavailable(SiteLinkError):
    """The public keys that sign tokens are not known yet."""


class TemporalUnavailable(SiteLinkError):
    """Temporal does not answer."""


class PayloadUnreadable(SiteLinkError):
    """A payload in Temporal cannot be decrypted. What needs it waits until a process with its key tries again."""


class ServerBusy(SiteLinkError):
    """The server has as much to do as it may."""


def is_error_name(name: str) -> bool:
    """Whether this module has an error of this name: only the messages of these errors are meant for clients."""
    kind = globals().get(name)
    return isinstance(kind, type) and issubclass(kind, SiteLinkError)
