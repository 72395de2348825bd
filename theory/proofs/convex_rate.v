(** The convex rate, for comparison: primal error and least gap of the open-loop step [eta_t = 2/(t + 1)]. After Jaggi 2013,
    Theorems 1 and 2, with [k = t - 1]. *)

From FrankWolfe Require Import setting assumptions lemmas.

(** How far the oracle may fall short: [delta] times what the curvature [C] costs the step anyway. *)
Definition Relative_shortfall {E : InnerProductSpace} (run : Run E) (C delta : R) : Prop :=
  0 <= delta /\ forall t, iteration run t -> eps run t <= delta * eta run t * C / 2.

Definition value_of_ConvexRate (C delta T : R) : R := 2 * C * (1 + delta) / (T + 2).

(** Primal error. Any [Z] of [K] will do, be it a minimum or not: [primal_rate] below. *)
Definition statement_of_ConvexRate : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (D delta : R) (Z : E),
  Setting P run -> Diameter P D -> Relative_shortfall run (beta P * D ^ 2) delta ->
  Static P -> Convex P -> KnownMinimum P Z -> FrankWolfeStep P run true -> OpenLoopStep run ->
  L P 1 (W run (S (T run))) - L P 1 Z <= value_of_ConvexRate (beta P * D ^ 2) delta (INR (T run)).

Definition value_of_ConvexGapRate (C delta T : R) : R := 27 / 4 * (C * (1 + delta)) / (T + 1).

(** Least gap, from the second iteration on. *)
Definition statement_of_ConvexGapRate : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (D delta : R),
  Setting P run -> Diameter P D -> Relative_shortfall run (beta P * D ^ 2) delta -> (3 <= T run)%nat ->
  Static P -> Convex P -> FrankWolfeStep P run true -> OpenLoopStep run ->
  exists t, (2 <= t <= T run)%nat /\ gap run t <= value_of_ConvexGapRate (beta P * D ^ 2) delta (INR (T run)).

(** * Proof *)

(** ** Numbers *)

(** With [s = t + 1] and [A = C (1 + delta)]: what is left of [2 A/s] after a step is [2 A (s - 1)/s^2 <= 2 A/(s + 1)]. *)
Lemma rate_is_kept A s : 0 <= A -> 0 < s -> (1 - 2 / s) * (2 * A / s) + (2 / s) ^ 2 * (A / 2) <= 2 * A / (s + 1).
Proof.
  intros HA Hs.
  replace (2 * A / (s + 1)) with ((1 - 2 / s) * (2 * A / s) + (2 / s) ^ 2 * (A / 2) + 2 * A / (s ^ 2 * (s + 1)))
    by (field; lra).
  assert (0 < s ^ 2 * (s + 1)) by (apply Rmult_lt_0_compat; [apply pow_lt |]; lra).
  assert (0 <= 2 * A / (s ^ 2 * (s + 1))); [| lra].
  apply Rmult_le_pos; [lra |]. left. now apply Rinv_0_lt_compat.
Qed.

(** With [u = 1/S] and [S = T + 1]: a step [e] between [2/S] and [3/S] along so large a gap is sure of a fall of [9 A/S^2]. *)
Lemma fall_along_a_large_gap A u e g : 0 <= A -> 0 < u -> 2 * u <= e <= 3 * u -> 27 / 4 * A * u < g ->
  9 * A * u ^ 2 < e * g - e ^ 2 * (A / 2).
Proof.
  intros HA Hu Hstep large.
  (* e g > e (27/4) A/S >= (27/2) A/S^2 *)
  assert (e * (27 / 4 * A * u) < e * g) by (apply Rmult_lt_compat_l; lra).
  assert (0 <= A * u) by (apply Rmult_le_pos; lra).
  assert (2 * u * (A * u) <= e * (A * u)) by (apply Rmult_le_compat_r; lra).
  (* e^2 A/2 <= (9/2) A/S^2 *)
  assert (e ^ 2 <= (3 * u) ^ 2) by (apply pow_incr; lra).
  assert (e ^ 2 * (A / 2) <= (3 * u) ^ 2 * (A / 2)) by (apply Rmult_le_compat_r; lra).
  lra.
Qed.

(** [2/S <= 2/s <= 3/S] for [2 S/3 <= s <= S]. *)
Lemma step_in_the_last_third S s : 0 < s <= S -> 2 * S <= 3 * s -> 2 * / S <= 2 / s <= 3 * / S.
Proof.
  intros range late. split.
  - apply Rmult_le_compat_l; [lra |]. apply Rinv_le_contravar; lra.
  - replace (2 / s) with (3 * / (3 * s / 2)) by (field; lra).
    apply Rmult_le_compat_l; [lra |]. apply Rinv_le_contravar; lra.
Qed.

(** ** Finitely many iterations *)

(** Either some [f t] is small, or all are large. *)
Lemma some_small_or_all_large f b m k :
  (exists t, (m <= t <= m + k)%nat /\ f t <= b) \/ (forall t, (m <= t <= m + k)%nat -> b < f t).
Proof.
  induction k as [| k [(t & range & small) | large]].
  - destruct (Rle_dec (f m) b); [left; exists m; split; [lia | assumption] |].
    right. intros t range. replace t with m by lia. lra.
  - left. exists t. split; [lia | assumption].
  - destruct (Rle_dec (f (m + S k)%nat) b); [left; exists (m + S k)%nat; split; [lia | assumption] |].
    right. intros t range. destruct (Nat.eq_dec t (m + S k)) as [-> |]; [lra | apply large; lia].
Qed.

(** From [m] to [m + k] there are [k + 1] falls. *)
Lemma large_falls_add_up (f : nat -> R) d m k :
  (forall t, (m <= t <= m + k)%nat -> d < f t - f (S t)) -> INR (S k) * d < f m - f (S (m + k)).
Proof.
  induction k as [| k IH]; intros falls.
  - specialize (falls m ltac:(lia)). replace (m + 0)%nat with m by lia. simpl. lra.
  - assert (INR (S k) * d < f m - f (S (m + k))) by (apply IH; intros t range; apply falls; lia).
    specialize (falls (S (m + k)) ltac:(lia)). replace (m + S k)%nat with (S (m + k)) by lia.
    rewrite S_INR. lra.
Qed.

(** The last third, [S = n + 1]: [t + 1] from [m + 1 = ceil(2 S/3)] to [S], which are [k + 1 >= S/3] iterations. *)
Lemma last_third n : (3 <= n)%nat ->
  exists m k, (2 <= m)%nat /\ n = (m + k)%nat /\ 2 * (INR n + 1) <= 3 * (INR m + 1) /\ INR n + 1 <= 3 * INR (S k).
Proof.
  intros long. pose proof (Nat.div_mod (2 * n + 1) 3 ltac:(lia)). pose proof (Nat.mod_upper_bound (2 * n + 1) 3 ltac:(lia)).
  exists ((2 * n + 1) / 3)%nat, (n - (2 * n + 1) / 3)%nat. rewrite <- !S_INR, !INR_IZR_INZ, <- !mult_IZR.
  repeat split; try apply IZR_le; lia.
Qed.

(** ** The rates *)

Section Rates.
  Context {E : InnerProductSpace} (P : Problem E) (run : Run E).
  Variables D A : R.
  Hypothesis setting : Setting P run.
  Hypothesis diameter : Diameter P D.
  Hypothesis static : Static P.
  Hypothesis convex : Convex P.
  Hypothesis step : FrankWolfeStep P run true.
  Hypothesis open_loop : OpenLoopStep run.

  (** [A] is the curvature [C = beta D^2] and what the oracle's shortfalls add to it: [A >= C + 2 eps_t/eta_t]. *)
  Hypothesis nonneg : 0 <= A.
  Hypothesis spoilt : forall t, iteration run t -> eps run t <= eta run t * (A - beta P * D ^ 2) / 2.

  (** (one step) for any [g] that the oracle's answer warrants. *)
  Lemma fall_along t g : iteration run t -> g <= ghat P run t + eps run t ->
    eta run t * g - eta run t ^ 2 * (A / 2) <= L P 1 (W run t) - L P 1 (W run (S t)).
  Proof.
    intros range below. destruct (proj2 step t range) as (bounds & _ & lower).
    pose proof (below_parabola P run setting t _ step range bounds) as parabola.
    pose proof (bend_below_diameter P run setting D t step diameter range) as bend.
    apply (Rmult_le_compat_l (eta run t ^ 2)) in bend; [| apply pow2_ge_0].
    (* eta_t g <= eta_t ghat_t + eta_t^2 (A - C)/2 *)
    pose proof (spoilt t range).
    assert (eta run t * g <= eta run t * (ghat P run t + eta run t * (A - beta P * D ^ 2) / 2))
      by (apply Rmult_le_compat_l; lra).
    rewrite <- !(static t). lra.
  Qed.

  (** [h_t <= ghat_t + eps_t], where [Z] stands for the minimum. *)
  Lemma error_below_ghat t Z : K P Z -> iteration run t -> L P 1 (W run t) - L P 1 Z <= ghat P run t + eps run t.
  Proof.
    intros inside range. assert (here : K P (W run t)) by (apply (step_is_feasible P run step); unfold iteration in range; lia).
    pose proof (convex t _ _ here inside) as above. destruct (inexact_oracle _ _ setting t range) as (_ & best).
    specialize (best Z inside). rewrite !(static t) in above. revert above best.
    unfold ghat. fold (gradient P run t). expand. lra.
  Qed.

  (** [h_{t+1} <= (1 - eta_t) h_t + eta_t^2 A/2] *)
  Lemma error_shrinks t Z : K P Z -> iteration run t ->
    L P 1 (W run (S t)) - L P 1 Z <= (1 - eta run t) * (L P 1 (W run t) - L P 1 Z) + eta run t ^ 2 * (A / 2).
  Proof. intros inside range. pose proof (fall_along t _ range (error_below_ghat t Z inside range)). lra. Qed.

  (** [h_{t+1} <= 2 A/(t + 2)] *)
  Lemma primal_rate t Z : K P Z -> iteration run t -> L P 1 (W run (S t)) - L P 1 Z <= 2 * A / (INR t + 2).
  Proof.
    intros inside. induction t as [| t IH]; intros range; [unfold iteration in range; lia |].
    pose proof (error_shrinks (S t) Z inside range) as shrinks. rewrite (open_loop (S t) range), S_INR in shrinks.
    rewrite S_INR. destruct t as [| t].
    - (* eta_1 = 1: h_2 <= A/2 <= 2 A/3 *)
      simpl INR in *. replace (2 / (0 + 1 + 1)) with 1 in shrinks by field. lra.
    - assert (before : L P 1 (W run (S (S t))) - L P 1 Z <= 2 * A / (INR (S t) + 2)).
      { apply IH. unfold iteration in *. lia. }
      set (s := INR (S t) + 2) in *. assert (2 <= s) by (pose proof (pos_INR (S t)); unfold s; lra).
      replace (INR (S t) + 1 + 1) with s in shrinks by (unfold s; ring).
      replace (INR (S t) + 1 + 2) with (s + 1) by (unfold s; ring).
      eapply Rle_trans; [exact shrinks |]. eapply Rle_trans; [| apply rate_is_kept; lra].
      apply Rplus_le_compat_r. apply Rmult_le_compat_l; [| assumption].
      assert (2 / s <= 1); [| lra]. apply Rmult_le_reg_r with s; [lra |]. unfold Rdiv. rewrite Rmult_assoc, Rinv_l; lra.
  Qed.

  (** In the last third of the iterations a gap above [(27/4) A/S] costs a fall of [9 A/S^2]. *)
  Lemma fall_in_the_last_third t : iteration run t -> 2 * (INR (T run) + 1) <= 3 * (INR t + 1) ->
    27 / 4 * A / (INR (T run) + 1) < gap run t ->
    9 * A * (/ (INR (T run) + 1)) ^ 2 < L P 1 (W run t) - L P 1 (W run (S t)).
  Proof.
    intros range late large. assert (INR t <= INR (T run)) by (apply le_INR; apply range). pose proof (pos_INR t).
    pose proof (ghat_is_nearly_the_gap P run setting t range).
    eapply Rlt_le_trans; [| apply (fall_along t (gap run t) range); lra].
    apply fall_along_a_large_gap; [assumption | apply Rinv_0_lt_compat; lra | | assumption].
    rewrite (open_loop t range). apply step_in_the_last_third; lra.
  Qed.

  (** Where the last third begins, the error is [3 A/S] at most: [k + 1 >= S/3] falls of [9 A/S^2] are no less. *)
  Lemma error_at_the_last_third m k : (2 <= m)%nat -> T run = (m + k)%nat -> 2 * (INR (T run) + 1) <= 3 * (INR m + 1) ->
    INR (T run) + 1 <= 3 * INR (S k) ->
    L P 1 (W run m) - L P 1 (W run (S (T run))) <= INR (S k) * (9 * A * (/ (INR (T run) + 1)) ^ 2).
  Proof.
    intros some split late many. destruct m as [| m]; [lia |]. pose proof (pos_INR (T run)).
    assert (inside : K P (W run (S (T run)))) by (apply (step_is_feasible P run step); lia).
    eapply Rle_trans; [apply (primal_rate m _ inside); unfold iteration; lia |].
    rewrite S_INR in late. replace (INR m + 1 + 1) with (INR m + 2) in late by ring. pose proof (pos_INR m).
    set (u := / (INR (T run) + 1)). assert (unit : (INR (T run) + 1) * u = 1) by (unfold u; apply Rinv_r; lra).
    assert (0 < u) by (apply Rinv_0_lt_compat; lra).
    (* 2 A/(m + 1) <= 3 A/S *)
    apply Rle_trans with (A * (3 * u)).
    - replace (2 * A / (INR m + 2)) with (A * (2 / (INR m + 2))) by (field; lra). apply Rmult_le_compat_l; [assumption |].
      apply Rmult_le_reg_r with (INR m + 2); [lra |]. replace (2 / (INR m + 2) * (INR m + 2)) with 2 by (field; lra).
      assert (2 * (INR (T run) + 1) * u <= 3 * (INR m + 2) * u) by (apply Rmult_le_compat_r; lra). lra.
    - (* S u = 1 *)
      assert (0 <= A * u ^ 2) by (apply Rmult_le_pos; [assumption | apply pow2_ge_0]).
      replace (A * (3 * u)) with (3 * (INR (T run) + 1) * (A * u ^ 2))
        by (transitivity (3 * A * u * ((INR (T run) + 1) * u)); [ring | rewrite unit; ring]).
      replace (INR (S k) * (9 * A * u ^ 2)) with (3 * (3 * INR (S k)) * (A * u ^ 2)) by ring.
      apply Rmult_le_compat_r; lra.
  Qed.

  (** Some gap of the last third is small, or the loss would end below where it ends. *)
  Lemma gap_rate : (3 <= T run)%nat -> exists t, (2 <= t <= T run)%nat /\ gap run t <= 27 / 4 * A / (INR (T run) + 1).
  Proof.
    intros long. destruct (last_third _ long) as (m & k & from_two & split & late & many).
    destruct (some_small_or_all_large (gap run) (27 / 4 * A / (INR (T run) + 1)) m k) as [(t & range & small) | large].
    - exists t. split; [lia | assumption].
    - exfalso. pose proof (error_at_the_last_third m k from_two split late many) as least.
      apply (Rle_not_lt _ _ least). replace (S (T run)) with (S (m + k)) by lia.
      apply (large_falls_add_up (fun t => L P 1 (W run t))). intros t range.
      assert (INR m <= INR t) by (apply le_INR; lia).
      apply fall_in_the_last_third; [unfold iteration; lia | lra | now apply large].
  Qed.
End Rates.

(** [A = C (1 + delta)] is what a relative shortfall leaves. *)
Lemma spoilt_curvature {E : InnerProductSpace} (P : Problem E) (run : Run E) D delta :
  Setting P run -> Relative_shortfall run (beta P * D ^ 2) delta ->
  0 <= beta P * D ^ 2 * (1 + delta) /\
  forall t, iteration run t -> eps run t <= eta run t * (beta P * D ^ 2 * (1 + delta) - beta P * D ^ 2) / 2.
Proof.
  intros setting (nonneg & short). split.
  - apply Rmult_le_pos; [apply (curvature_nonneg P run setting) | lra].
  - intros t range. specialize (short t range). lra.
Qed.

Theorem ConvexRate : statement_of_ConvexRate.
Proof.
  intros E P run D delta Z setting diameter short static convex (inside & _) step open_loop.
  destruct (spoilt_curvature P run D delta setting short) as (nonneg & spoilt).
  unfold value_of_ConvexRate. rewrite (Rmult_assoc 2).
  apply (primal_rate P run D); try assumption.
  split; [apply (some_iteration _ _ setting) | lia].
Qed.

Theorem ConvexGapRate : statement_of_ConvexGapRate.
Proof.
  intros E P run D delta setting diameter short long static convex step open_loop.
  destruct (spoilt_curvature P run D delta setting short) as (nonneg & spoilt).
  now apply (gap_rate P run D).
Qed.
