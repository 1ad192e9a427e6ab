"""``DeleteUpload``: removes an upload's objects twice, because a worker that was cut off may still write after the first removal."""

from datetime import timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.interface import HousekeepingActivities, Removed, RemoveObjects, RemoveRecord, StopRun
    from workflows.housekeeping import call_housekeeping
    from workflows.messages import DeleteInput

STOP_TIMEOUT = timedelta(hours=1)
REMOVE_TIMEOUT = timedelta(hours=12)
"""One activity removes all objects, which may be 5 million tiles. A retry lists only the objects that are left."""
RECORD_TIMEOUT = timedelta(minutes=10)


@workflow.defn
class DeleteUpload:
    """Removes one upload that is marked deleted.

    The workflow may be terminated and started again at any step: the mark is in ``upload.json``, and that object is removed last.
    """

    @workflow.run
    async def run(self, args: DeleteInput) -> Removed:
        """Ends the upload's run, then removes it.

        Returns:
            How many objects were removed.

        Raises:
            ApplicationError: The upload is not marked deleted.
        """
        workflow.set_current_details("ends the upload's run, then removes its objects")
        # The run ends before the removal, because it could write objects after the removal.
        await self._stop_run(args.ref)
        removed = await self._remove_objects(args.ref)
        if not removed.has_record:
            return removed  # an earlier run of this workflow has removed all objects
        look_again = workflow.now() + timedelta(seconds=args.look_again_s)
        workflow.set_current_details(f"{removed.objects:,} objects removed; looks again at {look_again:%Y-%m-%d %H:%M} UTC")
        # After this sleep every activity that could write has timed out, so the second removal finds all late objects.
        await workflow.sleep(args.look_again_s, summary="until every lost writer has timed out; then it looks again")
        await self._stop_run(args.ref)
        late = await self._remove_objects(args.ref)
        await call_housekeeping(HousekeepingActivities.remove_record, RemoveRecord(args.ref), RECORD_TIMEOUT, "remove upload.json")
        workflow.set_current_details(f"{removed.objects:,} objects removed, then {late.objects:,} that were written late")
        return Removed(removed.objects + late.objects, marked=False)

    async def _stop_run(self, ref: str) -> None:
        await call_housekeeping(HousekeepingActivities.stop_run, StopRun(ref), STOP_TIMEOUT, "end the upload's run")

    async def _remove_objects(self, ref: str) -> Removed:
        return await call_housekeeping(HousekeepingActivities.remove_objects, RemoveObjects(ref), REMOVE_TIMEOUT, "remove the objects")
