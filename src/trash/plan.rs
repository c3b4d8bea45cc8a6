//! What a trash would do. The dry run shows it, the real run carries it out: there is no second planner.
//!
//! Invariant: the rows of every member are locked when their users are looked for, so in the transaction that made it
//! a plan stays true. Members come parents first; none of them has an open tombstone.

use std::collections::{BTreeSet, VecDeque};

use serde::Serialize;
use sqlx::PgConnection;

use super::{Refusals, TrashBin, TrashError, TrashRequest};
use crate::{
    bystanders::{
        self, Leaving,
        named::{Question, Records},
        rows,
    },
    domain::{
        ids::{Kind, ResourceRef, TombstoneId},
        location::{KeyPlace, Location},
        map::ResourceKind,
        retention::Retention,
        tombstone::{Blocker, Tombstone},
    },
    places,
    store::{
        foreign_keys::Spared,
        holds,
        platform::{self, Locking, ResourceRow},
        recorded, tombstones,
    },
};

/// What would be trashed.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// The resource and, with a cascade, its children; parents first.
    pub members: Vec<Member>,
    /// The open tombstone, if the resource is in the trash already. Then there are no members.
    pub already: Option<Tombstone>,
    /// Children that are in the trash already, by tombstones of their own, which stay as they are.
    pub children_already: Vec<Tombstone>,
    /// What the request asks for otherwise than the tombstone has it, if the resource is in the trash already.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_taken: Vec<&'static str>,
}

/// Objects that would be recorded by key.
#[derive(Debug, Clone, Serialize)]
pub struct KeyPlan {
    /// Where, and how many.
    #[serde(flatten)]
    pub place: KeyPlace,
    /// Of those looked at, how many somebody else names who does not go along, and keeps.
    pub shared: u64,
    /// Not all of them were looked at.
    pub at_least: bool,
}

/// How often members are gone over for one that can be purged next. Most are in order the first time.
const MOST_ROUNDS: usize = 32;

/// Keys of a plan of which somebody else is asked for, and how many at a time.
const MOST_SHARED: usize = 100_000;
const ASKED_AT_ONCE: usize = 1000;

/// One resource that would be trashed.
#[derive(Debug, Clone, Serialize)]
pub struct Member {
    /// Which.
    #[serde(flatten)]
    pub resource: ResourceRef,
    /// Its name.
    pub name: Option<String>,
    /// Which member it goes with.
    pub parent: Option<usize>,
    /// What its purge would empty.
    pub locations: Vec<Location>,
    /// And what it would delete one by one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub recorded: Vec<KeyPlan>,
    /// Its restore window.
    #[serde(serialize_with = "as_text")]
    pub retention: Retention,
    /// Whether the platform has soft-deleted it itself, and only the tombstone is missing.
    pub marked: bool,
}

impl Plan {
    /// Everything that would be trashed.
    fn resources(&self) -> BTreeSet<ResourceRef> {
        self.members.iter().map(|member| member.resource.clone()).collect()
    }

    /// For what is in the trash already: a window once begun, and its reason, stay what they are until it is restored.
    fn in_trash(mut self, open: Tombstone, request: &TrashRequest) -> Self {
        let has_reason = request.by.reason.is_none() || request.by.reason == open.reason;
        let window = open.purge_after - open.trashed_at;
        let has_window =
            request.retention.is_none_or(|asked| (window - asked.duration()).abs() < time::Duration::SECOND);
        let differs = [("reason", has_reason), ("retention", has_window)];
        self.not_taken = differs.into_iter().filter(|(_, is_so)| !is_so).map(|(field, _)| field).collect();
        self.already = Some(open);
        self
    }

    /// Every place that a purge of its members would empty.
    pub fn locations(&self) -> Vec<Location> {
        self.members.iter().flat_map(|member| &member.locations).cloned().collect()
    }
}

impl From<KeyPlace> for KeyPlan {
    fn from(place: KeyPlace) -> Self {
        Self { place, shared: 0, at_least: false }
    }
}

fn as_text<S: serde::Serializer>(retention: &Retention, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(retention)
}

impl TrashBin {
    /// What a request would do: the dry run. Changes nothing.
    ///
    /// # Errors
    /// As the real run: [`TrashError`].
    pub async fn plan(&self, request: &TrashRequest) -> Result<Plan, TrashError> {
        let mut tx = self.store.begin().await?;
        let mut plan = self.plan_in(&mut tx, request).await?;
        let leaving = plan.resources();
        for member in &mut plan.members {
            self.count_keys(&mut tx, member, &leaving).await?;
        }
        Ok(plan)
    }

    /// Records a member's keys as the real run would, and asks who names them that does not leave with it. The transaction
    /// ends without a commit.
    async fn count_keys(
        &self,
        conn: &mut PgConnection,
        member: &mut Member,
        leaving: &BTreeSet<ResourceRef>,
    ) -> Result<(), TrashError> {
        let nobody = TombstoneId::new();
        self.record(&mut *conn, member, nobody).await?;
        for (at, keys) in member.recorded.iter_mut().enumerate() {
            let (mut seen, mut last) = (0, None::<String>);
            loop {
                let from = last.as_deref().map_or(recorded::From::Start, recorded::From::After);
                let page = recorded::page(&mut *conn, nobody, at, from, ASKED_AT_ONCE).await?;
                let asked: Vec<&str> = page.iter().map(|object| object.key.as_str()).collect();
                let (map, of, at) = (&self.map, &member.resource, &keys.place);
                keys.shared += Question { map, of, leaving, at, keys: &asked }.kept(&mut *conn).await?.len() as u64;
                seen += page.len();
                keys.at_least = seen >= MOST_SHARED && page.len() == ASKED_AT_ONCE;
                if keys.at_least || page.len() < ASKED_AT_ONCE {
                    break;
                }
                last = page.into_iter().next_back().map(|object| object.key);
            }
        }
        Ok(())
    }

    /// Records a member's keys for a tombstone. The transaction is spoiled by an error.
    pub(super) async fn record(
        &self,
        conn: &mut PgConnection,
        member: &mut Member,
        tombstone: TombstoneId,
    ) -> Result<(), TrashError> {
        let resource = &member.resource;
        let mut places: Vec<KeyPlace> = member.recorded.iter().map(|keys| keys.place.clone()).collect();
        if !places.is_empty() {
            let kind = self.kind_of(resource)?;
            let recorded = places::record(conn, kind, &resource.id, tombstone, &mut places).await;
            recorded.map_err(|error| TrashError::of_place(resource, error))?;
        }
        for (keys, place) in member.recorded.iter_mut().zip(places) {
            keys.place = place;
        }
        Ok(())
    }

    /// Plans in the caller's transaction, with the rows locked until it ends.
    pub(super) async fn plan_in(&self, conn: &mut PgConnection, request: &TrashRequest) -> Result<Plan, TrashError> {
        self.check_cascade(request)?;
        let mut plan = Plan { members: Vec::new(), already: None, children_already: Vec::new(), not_taken: Vec::new() };
        let mut refusals = Refusals::default();
        let mut seen = BTreeSet::from([request.resource.clone()]);
        let mut waiting = VecDeque::from([(request.resource.clone(), None)]);
        while let Some((resource, parent)) = waiting.pop_front() {
            let kind = self.kind_of(&resource)?;
            let row = platform::find(&mut *conn, kind, &resource.id, Locking::ForUpdate).await?;
            let Some(row) = row.filter(|row| row.fits) else {
                // a child that is not (or no longer) of its kind is none
                if parent.is_some() {
                    continue;
                }
                // the platform may have removed its row since
                return match tombstones::open_of(&mut *conn, &resource).await? {
                    Some(open) => Ok(plan.in_trash(open, request)),
                    None => Err(TrashError::NotFound(resource)),
                };
            };
            if let Some(open) = tombstones::open_of(&mut *conn, &resource).await? {
                if parent.is_some() {
                    plan.children_already.push(open);
                    continue;
                }
                return Ok(plan.in_trash(open, request));
            }
            self.refusals_of(&mut *conn, kind, &resource, &row, &mut refusals).await?;
            let at = plan.members.len();
            for child in self.children_of(&mut *conn, kind, &resource, &request.with).await? {
                if seen.insert(child.clone()) {
                    waiting.push_back((child, Some(at)));
                }
            }
            plan.members.push(Member {
                locations: self.places_of(&mut *conn, kind, &resource, &row).await?,
                recorded: kind.key_places().into_iter().map(KeyPlan::from).collect(),
                retention: self.window(kind, &resource, request.retention)?,
                marked: row.marked == Some(true),
                name: row.name,
                resource,
                parent,
            });
        }
        let along = plan.resources();
        for member in &plan.members {
            let kind = self.kind_of(&member.resource)?;
            let records = Records::Perhaps;
            let leaving = Leaving { kind, resource: &member.resource, locations: &member.locations, records };
            let hurt = bystanders::of(&mut *conn, &self.map, &self.keys, leaving, &along).await;
            refusals.blockers.extend(hurt.map_err(|error| TrashError::of_place(&member.resource, error))?);
        }
        refusals.blockers.extend(self.never_first(&mut *conn, &plan.members).await?);
        if refusals.is_empty() {
            Ok(plan)
        } else {
            Err(TrashError::Refused { resource: request.resource.clone(), refusals: Box::new(refusals) })
        }
    }

    /// The rows that refuse whatever order the members are purged in, children before their parents: those of others, and
    /// of members that would wait for each other.
    async fn never_first(&self, conn: &mut PgConnection, members: &[Member]) -> Result<Vec<Blocker>, TrashError> {
        let mut gone: Vec<&ResourceRef> = Vec::new();
        let mut left: BTreeSet<usize> = (0..members.len()).collect();
        for round in 1.. {
            let mut refusing = Vec::new();
            let before = left.len();
            let mut order: Vec<usize> = left.iter().copied().collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for at in order {
                if left.iter().any(|child| members[*child].parent == Some(at)) {
                    continue;
                }
                let (resource, earlier) = (&members[at].resource, Spared::Earlier(&gone));
                let found = rows::refusing(&mut *conn, &self.map, &self.keys, resource, earlier).await?;
                if found.is_empty() {
                    left.remove(&at);
                    gone.push(resource);
                }
                refusing.extend(found);
            }
            if left.is_empty() {
                break;
            }
            if left.len() == before || round == MOST_ROUNDS {
                return Ok(refusing);
            }
        }
        Ok(Vec::new())
    }

    /// A cascade must name kinds that can be reached; a typing error must not pass for "nothing there".
    fn check_cascade(&self, request: &TrashRequest) -> Result<(), TrashError> {
        let mut reachable = BTreeSet::new();
        let mut waiting = vec![request.resource.kind.clone()];
        while let Some(kind) = waiting.pop() {
            for children in &self.map.kind(kind.as_str())?.children {
                if reachable.insert(children.kind.clone()) && request.with.contains(&children.kind) {
                    waiting.push(children.kind.clone());
                }
            }
        }
        match request.with.iter().find(|asked| !reachable.contains(asked)) {
            None => Ok(()),
            Some(asked) => Err(TrashError::NoSuchChildren {
                kind: request.resource.kind.clone(),
                asked: asked.to_string(),
                known: reachable.iter().map(Kind::as_str).collect::<Vec<_>>().join(", "),
            }),
        }
    }

    async fn places_of(
        &self,
        conn: &mut PgConnection,
        kind: &ResourceKind,
        resource: &ResourceRef,
        row: &ResourceRow,
    ) -> Result<Vec<Location>, TrashError> {
        let resolved = places::resolve(conn, kind, &resource.id, row).await;
        resolved.map_err(|error| TrashError::of_place(resource, error))
    }

    async fn refusals_of(
        &self,
        conn: &mut PgConnection,
        kind: &ResourceKind,
        resource: &ResourceRef,
        row: &ResourceRow,
        refusals: &mut Refusals,
    ) -> Result<(), TrashError> {
        let by_name = row.name.as_ref().is_some_and(|name| kind.protect.names.contains(name));
        if by_name || kind.protect.ids.contains(&resource.id) {
            refusals.protected.push(resource.clone());
        }
        refusals.holds.extend(holds::find(&mut *conn, resource).await?);
        refusals.blockers.extend(platform::blockers(conn, kind, &resource.id).await?);
        Ok(())
    }

    async fn children_of(
        &self,
        conn: &mut PgConnection,
        kind: &ResourceKind,
        resource: &ResourceRef,
        with: &[Kind],
    ) -> Result<BTreeSet<ResourceRef>, TrashError> {
        let mut found = BTreeSet::new();
        for children in kind.children.iter().filter(|children| with.contains(&children.kind)) {
            for id in platform::child_ids(&mut *conn, kind, &resource.id, children).await? {
                found.insert(self.resource(children.kind.as_str(), &id)?);
            }
        }
        Ok(found)
    }

    /// A request can lengthen a window, and shorten it only as far as the configuration allows.
    fn window(
        &self,
        kind: &ResourceKind,
        resource: &ResourceRef,
        asked: Option<Retention>,
    ) -> Result<Retention, TrashError> {
        let least = self.retention.minimum.map_or(kind.retention, |minimum| minimum.min(kind.retention));
        match asked {
            None => Ok(kind.retention),
            Some(asked) if asked >= least => Ok(asked),
            Some(asked) => Err(TrashError::RetentionTooShort { resource: resource.clone(), asked, least }),
        }
    }
}
