/* Who holds the registration of one exclusive socket, as sockshare/core/registration.py decides it: the protocol between
 * one broker, which is killed between any two effects and goes on from its last record and the kernel, and processes
 * that die and come back under the same pid. Process 0 is kept by a gate (a registration that can be suspended is the
 * same to the broker), process 1 cooperates: it arms itself when told, and answers when told to let go. Its answers are
 * delayed, lost and duplicated. -DGATES=2 makes a gate of both.
 *
 * Laws, each an assertion: at most one is armed; epochs rise; only the recorded identity is stopped; what is armed when
 * a new broker looks counts; and when nothing more can happen, somebody holds and is armed.
 *
 * Each of TIME_GRANTS, GRANT_BEFORE_RECORD, NO_RECORD, EPOCH_RESET, OLD_CONNECTION, NO_EPOCH, BARE_PID, NOT_SWEPT
 * puts in one wrong design, and has to break a law.
 */
#ifndef GATES
#define GATES 1
#endif
#define GATE(i) ((i) < GATES)
#define NONE 0 /* standings; the last two count as holding */
#define WAITING 1
#define HELD 2
#define REVOKING 3
#define NOBODY 2
#define TAKEN (standing[0] >= HELD || standing[1] >= HELD)
#define SAME(i) (alive[i] && incarnation[i] == identity[i])
#ifdef BARE_PID
#define STOPPABLE(i) alive[i]
#else
#define STOPPABLE(i) SAME(i)
#endif

mtype = { held, revoked };
chan down[2] = [4] of { mtype, byte }; /* to the process, of its present connection */
chan old[2] = [4] of { mtype, byte };  /* what an earlier one left over */
chan up[2] = [2] of { byte, byte };    /* answers: the epoch, and whose: a key is never used again */

/* The world. */
bool alive[2], armed[2], counted[2], notice[2], attached[2];
byte incarnation[2]; /* of the pid */
byte seen[2], has[2]; /* epochs, as the process knows them */
byte narmed, top;     /* who counts as armed; the largest epoch that was given */
byte kills = KILLS, deaths = DEATHS, moves = MOVES, copies = 1, losses = 1, mishaps = 1;

/* The broker, and its record. */
byte standing[2], epoch[2], identity[2], last, chosen = NOBODY;
byte rstanding[2], repoch[2], ridentity[2], rlast;

inline arm(i) {
  if
  :: !counted[i] -> counted[i] = true; narmed++
  :: else
  fi;
  armed[i] = true;
  assert(narmed <= 1)
}

inline disarm(i) {
  if
  :: counted[i] -> counted[i] = false; narmed--
  :: else
  fi;
  armed[i] = false
}

inline empty_of(c) {
  do
  :: nempty(c) -> c?_,_
  :: empty(c) -> break
  od
}

inline die(i) {
  disarm(i); alive[i] = false; notice[i] = true; attached[i] = false; seen[i] = 0; has[i] = 0;
  empty_of(down[i]); empty_of(old[i])
}

inline say(i, what) {
  if
  :: attached[i] && len(down[i]) < 4 -> down[i]!what,epoch[i]
  :: else
  fi
}

inline record() {
  d_step {
#ifndef NO_RECORD
    rstanding[0] = standing[0]; rstanding[1] = standing[1];
    repoch[0] = epoch[0]; repoch[1] = epoch[1];
    ridentity[0] = identity[0]; ridentity[1] = identity[1];
#endif
    rlast = last
  }
}

/* The broker is killed here, or not. */
#define MAY_BE_KILLED if :: kills > 0 -> kills--; goto killed :: true fi

proctype process(byte i) {
  mtype what; byte e;
again:
  do
  :: atomic { !alive[i] -> alive[i] = true; incarnation[i]++ }
  :: atomic { alive[i] && deaths > 0 -> deaths--; die(i) }
  :: atomic { GATE(i) && alive[i] && !armed[i] && mishaps > 0 -> mishaps--; armed[i] = true } /* by itself */
  :: atomic { alive[i] && nempty(down[i]) && nfull(up[i]) -> down[i]?what,e; goto told }
#ifdef OLD_CONNECTION
  :: atomic { alive[i] && nempty(old[i]) && nfull(up[i]) -> old[i]?what,e; goto told }
#endif
  :: atomic { nempty(up[i]) && losses > 0 -> losses--; up[i]?_,_ }
  od;
told:
  atomic {
    if
    :: GATE(i) || !alive[i] -> skip
    :: else ->
      if
      :: what == held && e > seen[i] -> seen[i] = e; has[i] = e; arm(i)
      :: what == held && e <= seen[i] -> skip
      :: what == revoked ->
        if
        :: has[i] == e -> has[i] = 0; disarm(i)
        :: else
        fi;
        up[i]!e,incarnation[i]
      fi
    fi;
    e = 0; what = 0; goto again
  }
}

proctype broker() {
  mtype what_; byte i, e, who; byte target = NOBODY, granted = NOBODY, told = NOBODY; bool asked, dirty;
idle:
  do
  /* A claim: of a gate, which is swept before use; or of one that attaches and is told where it stands. */
  :: atomic { GATE(0) && alive[0] && standing[0] == NONE -> i = 0; goto claimed }
  :: atomic { GATE(1) && alive[1] && standing[1] == NONE -> i = 1; goto claimed }
  :: atomic { !GATE(1) && alive[1] && !attached[1] && (standing[1] == NONE || SAME(1)) ->
       i = 1; attached[1] = true;
       do
       :: nempty(down[1]) -> down[1]?what_,e;
#ifdef OLD_CONNECTION
          if
          :: len(old[1]) < 4 -> old[1]!what_,e
          :: else
          fi
#endif
       :: empty(down[1]) -> break
       od;
       e = 0; what_ = 0;
       if
       :: standing[1] == HELD -> down[1]!held,epoch[1]; goto idle
       :: standing[1] == REVOKING -> down[1]!revoked,epoch[1]; goto idle
       :: standing[1] == WAITING -> goto idle
       :: else -> goto claimed
       fi }
  /* A death is noticed. */
  :: atomic { notice[0] -> i = 0; goto gone }
  :: atomic { notice[1] -> i = 1; goto gone }
  /* A gate that waits is seen armed by itself. */
  :: atomic { GATE(0) && SAME(0) && standing[0] == WAITING && armed[0] && !counted[0] -> target = 0; goto act }
  :: atomic { GATE(1) && SAME(1) && standing[1] == WAITING && armed[1] && !counted[1] -> target = 1; goto act }
  /* A move, or a pause, or a stall. */
  :: atomic { moves > 0 && standing[0] == HELD && standing[1] == WAITING -> moves--; i = 0; goto move }
  :: atomic { moves > 0 && standing[1] == HELD && standing[0] == WAITING -> moves--; i = 1; goto move }
  /* A release of a gate: its process watches it no more. */
  :: atomic { moves > 0 && GATE(0) && SAME(0) && standing[0] == HELD -> moves--; standing[0] = NONE; target = 0; dirty = true; goto act }
  /* Time is over: the holder is stopped, which frees nothing. */
  :: atomic { standing[0] == REVOKING && STOPPABLE(0) -> i = 0; goto late }
  :: atomic { standing[1] == REVOKING && STOPPABLE(1) -> i = 1; goto late }
  /* An answer, now or of long ago; and perhaps once more later. */
  :: atomic { nempty(up[1]) ->
       if
       :: up[1]?e,who
       :: copies > 0 -> copies--; up[1]?<e,who>
       fi;
       if
#ifdef NO_EPOCH
       :: standing[1] == REVOKING && who == identity[1]
#else
       :: standing[1] == REVOKING && who == identity[1] && e == epoch[1]
#endif
         -> standing[1] = WAITING; epoch[1] = 0; dirty = true; e = 0; who = 0; goto act
       :: else -> e = 0; who = 0
       fi }
  od;

claimed:
  atomic {
    if
    :: GATE(i) && !counted[i] -> armed[i] = false
    :: else
    fi;
    identity[i] = incarnation[i]; standing[i] = WAITING; epoch[i] = 0; dirty = true; goto act
  }
gone:
  atomic {
    notice[i] = false;
    if
#ifdef BARE_PID
    :: standing[i] != NONE
#else
    :: standing[i] != NONE && !SAME(i)
#endif
      -> standing[i] = NONE; epoch[i] = 0; dirty = true; goto act
    :: else -> goto idle
    fi
  }
move:
  atomic { standing[i] = REVOKING; chosen = 1 - i; target = i; asked = true; goto act }
late:
  atomic {
#ifdef TIME_GRANTS
    standing[i] = WAITING; epoch[i] = 0; dirty = true; goto act
#else
    if
    :: STOPPABLE(i) -> assert(SAME(i)); die(i)
    :: else /* it died meanwhile */
    fi;
    goto idle
#endif
  }

  /* What follows from it, in the order of the effects: disarm, (its answer,) record, arm, tell. */
act:
  MAY_BE_KILLED;
  atomic {
    if
    :: target != NOBODY && GATE(target) -> disarm(target)
    :: else
    fi
  }
  MAY_BE_KILLED;
  atomic {
    if
    :: asked && GATE(target) -> standing[target] = WAITING; epoch[target] = 0; dirty = true
    :: asked && !GATE(target) -> told = target; dirty = true
    :: else
    fi;
    asked = false; target = NOBODY;
    if /* fill the place */
    :: !TAKEN && chosen != NOBODY && standing[chosen] == WAITING -> granted = chosen
    :: !TAKEN && !(chosen != NOBODY && standing[chosen] == WAITING) && standing[0] == WAITING -> granted = 0
    :: !TAKEN && !(chosen != NOBODY && standing[chosen] == WAITING) && standing[1] == WAITING -> granted = 1
    :: else
    fi;
    if
    :: granted != NOBODY ->
      last++; standing[granted] = HELD; epoch[granted] = last; chosen = NOBODY; dirty = true
    :: else
    fi
  }
#ifndef GRANT_BEFORE_RECORD
  MAY_BE_KILLED;
  atomic {
    if
    :: dirty -> record()
    :: else
    fi
  }
#endif
  MAY_BE_KILLED;
  atomic {
    if
    :: granted != NOBODY -> assert(epoch[granted] > top); top = epoch[granted]
    :: else
    fi;
    if
    :: granted != NOBODY && !GATE(granted) -> say(granted, held)
    :: granted != NOBODY && GATE(granted) && SAME(granted) -> arm(granted)
    :: else
    fi
  }
#ifdef GRANT_BEFORE_RECORD
  MAY_BE_KILLED;
  atomic {
    if
    :: dirty -> record()
    :: else
    fi
  }
#endif
  MAY_BE_KILLED;
  atomic {
    if
    :: told != NOBODY -> say(told, revoked)
    :: else
    fi;
    granted = NOBODY; told = NOBODY; dirty = false; goto idle
  }

  /* The next broker: the record, the deaths, the sweep; then what was held is armed again. */
killed:
  atomic {
    target = NOBODY; granted = NOBODY; told = NOBODY; asked = false; dirty = false; chosen = NOBODY; e = 0; who = 0;
    attached[0] = false; attached[1] = false;
    i = 0;
    do
    :: i < 2 ->
      standing[i] = rstanding[i]; epoch[i] = repoch[i]; identity[i] = ridentity[i]; notice[i] = false;
      if
      :: standing[i] != NONE && !SAME(i) -> standing[i] = NONE; epoch[i] = 0
      :: else
      fi;
      i++
    :: else -> break
    od;
#ifdef EPOCH_RESET
    last = 0;
#else
    last = rlast;
#endif
    i = 0; dirty = true
  }
  do
  :: i < 2 ->
    MAY_BE_KILLED;
    atomic {
      if
      :: GATE(i) && (standing[i] == WAITING || standing[i] == REVOKING) ->
#ifdef NOT_SWEPT
        if
        :: standing[i] == WAITING && armed[i] -> arm(i) /* as it is: what is armed when the broker looks counts */
        :: standing[i] == REVOKING -> disarm(i)
        :: else
        fi;
#else
        disarm(i);
#endif
        standing[i] = WAITING; epoch[i] = 0
      :: else
      fi;
      i++
    }
  :: else -> break
  od;
  i = 0;
  do
  :: i < 2 ->
    MAY_BE_KILLED;
    atomic {
      if
      :: GATE(i) && standing[i] == HELD && SAME(i) -> arm(i)
      :: else
      fi;
      i++
    }
  :: else -> break
  od;
  atomic { i = 0; goto act }
}

/* When nothing more can happen. */
proctype end() {
  atomic { timeout -> assert((standing[0] == HELD && armed[0]) || (standing[1] == HELD && armed[1])) }
}

init {
  atomic { run process(0); run process(1); run broker(); run end() }
}
