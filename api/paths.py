"""The paths of the API, shared by the server, the command line and the tests."""

from activities.bucket.keys import PlanRef, UploadRef

V1 = "/v1/"
ORGANIZATION = "/v1/organizations/{organization}"
WEBHOOKS = f"{ORGANIZATION}/webhooks"
DELIVERIES = f"{WEBHOOKS}/deliveries"
REDELIVER = f"{WEBHOOKS}/{{delivery}}/redeliver"
PLAN = "/v1/organizations/{organization}/projects/{project}/plans/{plan}"
UPLOADS = f"{PLAN}/uploads"
UPLOAD = f"{UPLOADS}/{{upload}}"
BEGIN = f"{UPLOADS}:begin"
PARTS = f"{UPLOAD}/parts"

LIVE, READY, METRICS = "/livez", "/readyz", "/metrics"
R2_EVENTS = "/v1/events/r2"
UNREADABLE_EVENTS = "/v1/events/unreadable"
CODEC = "/v1/codec"

SESSION = "/v1/session"
HOME, OPENAPI, DOCS = "/", "/openapi.json", "/docs"
UNGUARDED = (LIVE, READY, R2_EVENTS)
"""The paths that answer under any host name or none: the health checks, and R2's push, which is signed."""


def plan_path(plan: PlanRef) -> str:
    """The path of a plan."""
    return PLAN.format(organization=plan.organization, project=plan.project, plan=plan.plan)


def uploads_path(plan: PlanRef) -> str:
    """The path of a plan's uploads."""
    return f"{plan_path(plan)}/uploads"


def upload_path(ref: UploadRef) -> str:
    """The path of one upload."""
    return f"{uploads_path(ref.plan_ref)}/{ref.upload}"


def page_path(ref: UploadRef) -> str:
    """The path of the web page that shows an upload."""
    return f"/?ref={ref}"
