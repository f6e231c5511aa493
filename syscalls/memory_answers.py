"""Kernel values about memory -> answers. The others are in `syscalls.answers`."""

from __future__ import annotations

from kerneld.calls import GroupInfo
from kerneld.holdings import Explanation, Holding, LimitChange, MemoryReport, Outcome, PartChecked, PathDecision, TierAccount, TierTotal
from kerneld_client.pb import syscalls_pb2 as pb
from syscalls.request_answers import outlook

OUTCOMES = {Outcome.APPLIED: pb.LIMIT_OUTCOME_APPLIED, Outcome.DEFERRED: pb.LIMIT_OUTCOME_DEFERRED}


def holding(item: Holding) -> pb.Holding:
    """Bytes that something holds."""
    return pb.Holding(
        tier=item.tier, owner=item.owner, kind=item.kind, name=item.name, state=item.state, bytes=item.size_bytes, device=item.device
    )


def limit_change(change: LimitChange) -> pb.LimitChange:
    """What became of a change of a limit."""
    return pb.LimitChange(
        tier=change.tier,
        field=change.field,
        before=change.before,
        after=change.after,
        outcome=OUTCOMES[change.outcome],
        awaited_bytes=change.awaited_bytes,
        awaited_from=map(holding, change.awaited_from),
    )


def memory(report: MemoryReport) -> pb.Memory:
    """The ledger."""
    return pb.Memory(
        tiers=map(tier_total, report.tiers), accounts=map(tier_account, report.accounts), decisions=map(path_decision, report.decisions)
    )


def tier_total(item: TierTotal) -> pb.TierTotal:
    """One tier, all owners together."""
    return pb.TierTotal(
        tier=item.tier,
        total_bytes=item.total_bytes,
        free_bytes=item.free_bytes,
        guaranteed_bytes=item.guaranteed_bytes,
        kinds=dict(item.kinds),
        device=item.device,
    )


def tier_account(item: TierAccount) -> pb.TierAccount:
    """What one owner holds of one tier."""
    return pb.TierAccount(
        owner=item.owner,
        tier=item.tier,
        kinds=dict(item.kinds),
        used_bytes=item.used_bytes,
        guarantee_bytes=item.guarantee_bytes,
        limit_bytes=item.limit_bytes,
        borrowed_bytes=item.borrowed_bytes,
        excess_bytes=item.excess_bytes,
        weight=item.weight,
        pinned_bytes=item.pinned_bytes,
        device=item.device,
    )


def path_decision(item: PathDecision) -> pb.PathDecision:
    """How pages were brought back."""
    return pb.PathDecision(
        at=item.at,
        model=item.model,
        context_id=item.context_id,
        num_tokens=item.num_tokens,
        keep_tokens=item.keep_tokens,
        chosen=item.chosen,
        cost_s=item.cost_s,
        alternative=item.alternative,
        alternative_cost_s=item.alternative_cost_s,
        measured_s=item.measured_s,
    )


def explanation(item: Explanation) -> pb.Explanation:
    """Why something is where it is."""
    place = item.queue
    return pb.Explanation(
        subject=item.subject,
        state=item.state,
        summary=item.summary,
        placements=[
            pb.Placement(tier=each.tier, bytes=each.size_bytes, num_pages=each.num_pages, device=each.device) for each in item.placements
        ],
        obstacles=[
            pb.Obstacle(
                code=each.code,
                text=each.text,
                tier=each.tier,
                owner=each.owner,
                needed_bytes=each.needed_bytes,
                available_bytes=each.available_bytes,
                limit_bytes=each.limit_bytes,
                device=each.device,
            )
            for each in item.obstacles
        ],
        holders=map(holding, item.holders),
        remedies=[
            pb.Remedy(
                action=each.action.value,
                tier=each.tier,
                bytes=each.size_bytes,
                owner=each.owner,
                subject=each.subject,
                text=each.text,
                is_part=each.is_part,
            )
            for each in item.remedies
        ],
        queue=None
        if place is None
        else pb.QueuePlace(
            position=place.position,
            tenant_waiting=place.tenant_waiting,
            waiting=place.waiting,
            running=place.running,
            service=place.service,
        ),
        outlook=None if item.outlook is None else outlook(item.outlook),
    )


def part_checked(item: PartChecked) -> pb.PartChecked:
    """One part that fsck looked at."""
    return pb.PartChecked(part=item.part, num_checked=item.num_checked, unit=item.unit, bytes_read=item.bytes_read, problems=item.problems)


def sharing_group(info: GroupInfo) -> pb.SharingGroup:
    """A sharing group."""
    return pb.SharingGroup(name=info.name, members=info.members, created_at=info.created_at, num_contexts=info.num_contexts)
