(** Theorem C: a ball around a centre [c] in place of the diameter. One step size below 1, and no condition on [T]. *)

From FrankWolfe Require Import setting assumptions lemmas.

(** Telescoped: for every step size [e] in (0, 1). Where [beta = 0], [e = 1] is allowed too, and the second term is 0. *)
Definition telescoped : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (c : E) (radius e : R),
  Setting P run -> Ball P c radius ->
  Static P -> FrankWolfeStep P run false -> ConstantStep P run true e ->
  mean (gap run) (T run)
  <= decrease P run / (e * INR (T run))
     + beta P * (‖W run 1 - c‖² / (e * INR (T run)) + radius ^ 2) * (e / (2 * (1 - e)))
     + mean (eps run) (T run).

(** The step that minimises [a/e + b/(1 - e)] over (0, 1); the whole step for [b = 0]. *)
Definition centred (a b : R) : R := if Rlt_dec 0 b then sqrt a / (sqrt a + sqrt b) else 1.

(** [a = M/T] is known of the fall; [b] is [p = beta R^2/2] from the centre and [q = p (1 + 1/T)] from elsewhere. *)
Definition step_from_centre (M beta radius T : R) : R := centred (M / T) (beta * radius ^ 2 / 2).

Definition step_from_anywhere (M beta radius T : R) : R := centred (M / T) (beta * radius ^ 2 / 2 * (1 + 1 / T)).

Definition value_from_centre (M beta radius T : R) : R := radius * sqrt (2 * M * beta / T) + M / T.

(** [(sqrt a + sqrt q)^2 - p = R sqrt(2 M beta (1 + 1/T)/T) + (M + beta R^2/2)/T] *)
Definition value_from_anywhere (M beta radius T : R) : R :=
  (sqrt (M / T) + sqrt (beta * radius ^ 2 / 2 * (1 + 1 / T))) ^ 2 - beta * radius ^ 2 / 2.

(** Closed, from the centre: with [e = 1/(1 + R sqrt(beta T/(2 M)))]. *)
Definition statement_from_centre : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (c : E) (radius M : R),
  Setting P run -> Ball P c radius -> ‖W run 1 - c‖² = 0 -> Initial_gap P run M ->
  Static P -> FrankWolfeStep P run false -> ConstantStep P run true (step_from_centre M (beta P) radius (INR (T run))) ->
  mean (gap run) (T run) <= value_from_centre M (beta P) radius (INR (T run)) + mean (eps run) (T run).

(** Closed, from anywhere in the ball. *)
Definition statement_from_anywhere : Prop :=
  forall (E : InnerProductSpace) (P : Problem E) (run : Run E) (c : E) (radius M : R),
  Setting P run -> Ball P c radius -> Initial_gap P run M ->
  Static P -> FrankWolfeStep P run false -> ConstantStep P run true (step_from_anywhere M (beta P) radius (INR (T run))) ->
  mean (gap run) (T run) <= value_from_anywhere M (beta P) radius (INR (T run)) + mean (eps run) (T run).

Definition statement : Prop := statement_from_centre /\ statement_from_anywhere.

(** * Proof *)

(** ** Distances from the centre *)

(** Of a point between [x] and [v], by the identity that makes the norm Euclidean. *)
Lemma distance_of_a_point_between {E : InnerProductSpace} (x v c : E) s :
  ‖x + s * (v - x) - c‖² = (1 - s) * ‖x - c‖² + s * ‖v - c‖² - s * (1 - s) * ‖v - x‖².
Proof. expand. rewrite (inner_sym _ v x), (inner_sym _ c x), (inner_sym _ c v). ring. Qed.

Section Telescoping.
  Context {E : InnerProductSpace} (P : Problem E) (run : Run E) (c : E) (radius e : R).
  Hypotheses (setting : Setting P run) (ball : Ball P c radius) (static : Static P).
  Hypotheses (step : FrankWolfeStep P run false) (constant : ConstantStep P run true e).

  (** [e (1 - e) |V_t - W_t|^2 <= |W_t - c|^2 - |W_{t+1} - c|^2 + e R^2] *)
  Lemma step_from_the_centre t : iteration run t ->
    e * (1 - e) * distance2 run t <= ‖W run t - c‖² - ‖W run (S t) - c‖² + e * radius ^ 2.
  Proof.
    intros range. destruct (proj2 step t range) as (_ & next). destruct constant as (positive & same & _).
    rewrite next, (same t range), distance_of_a_point_between. unfold distance2.
    destruct (inexact_oracle _ _ setting t range) as (inside & _).
    pose proof (Rmult_le_compat_l e _ _ ltac:(lra) (proj2 ball _ inside)).
    pose proof (Rmult_le_pos e _ ltac:(lra) (inner_nonneg E (W run t - c)%V)). lra.
  Qed.

  Lemma distances_add_up :
    e * (1 - e) * sum (distance2 run) (T run) <= ‖W run 1 - c‖² + INR (T run) * (e * radius ^ 2).
  Proof.
    pose proof (sum_le _ _ (T run) step_from_the_centre) as steps.
    rewrite sum_scale, sum_plus, (telescope (fun t => ‖W run t - c‖²)), sum_constant in steps.
    pose proof (inner_nonneg E (W run (S (T run)) - c)%V). lra.
  Qed.

  (** The sum of (one step). *)
  Lemma gaps_add_up :
    e * (sum (gap run) (T run) - sum (eps run) (T run))
    <= decrease P run + e ^ 2 * (beta P / 2) * sum (distance2 run) (T run).
  Proof.
    rewrite <- (falls_add_up P run static), <- sum_minus, <- !sum_scale, <- sum_plus. apply sum_le. intros t range.
    pose proof (one_step P run setting t (exact_step_or_lower P run setting step) range) as one.
    rewrite (proj1 (proj2 constant) t range) in one. lra.
  Qed.

  (** [e^2 beta/2 sum |V_t - W_t|^2] *)
  Lemma curvature_adds_up :
    e ^ 2 * (beta P / 2) * sum (distance2 run) (T run)
    <= beta P * (‖W run 1 - c‖² + INR (T run) * (e * radius ^ 2)) * (e / (2 * (1 - e))).
  Proof.
    destruct constant as (positive & _ & [below_one | concave]); [| rewrite concave; lra].
    pose proof (proj1 (upper_smooth _ _ setting)) as bent.
    replace (e ^ 2 * (beta P / 2) * sum (distance2 run) (T run))
      with (beta P * (e * (1 - e) * sum (distance2 run) (T run)) * (e / (2 * (1 - e)))) by (field; lra).
    apply Rmult_le_compat_r; [left; apply Rdiv_lt_0_compat; lra |].
    apply Rmult_le_compat_l; [assumption | apply distances_add_up].
  Qed.
End Telescoping.

Theorem CircumradiusTelescoped : telescoped.
Proof.
  intros E P run c radius e setting ball static step constant.
  pose proof (some_iteration _ _ setting) as some. pose proof (horizon_positive _ some).
  pose proof (gaps_add_up P run e setting static step constant) as gaps.
  pose proof (curvature_adds_up P run c radius e setting ball step constant) as curved.
  pose proof (proj1 constant) as positive. set (spread := e / (2 * (1 - e))) in *.
  apply mean_le; [assumption |]. apply Rmult_le_reg_l with e; [assumption |].
  rewrite (sum_is_mean (eps run)) in gaps by assumption.
  replace (e * (INR (T run) * _))
    with (decrease P run + beta P * (‖W run 1 - c‖² + INR (T run) * (e * radius ^ 2)) * spread
          + e * (INR (T run) * mean (eps run) (T run))) by (field; lra).
  lra.
Qed.

(** ** The tuned step *)

Lemma centred_below_one a b : 0 < b -> centred a b < 1.
Proof.
  intros bent. unfold centred. destruct (Rlt_dec 0 b); [| lra].
  pose proof (sqrt_pos a). pose proof (sqrt_lt_R0 b bent).
  apply Rmult_lt_reg_r with (sqrt a + sqrt b); [lra |].
  replace (sqrt a / (sqrt a + sqrt b) * (sqrt a + sqrt b)) with (sqrt a) by (field; lra). lra.
Qed.

(** Where [a = 0] and [b > 0] the tuned step is none, and there is nothing to divide by. *)
Lemma centred_reaches_the_least a b : 0 <= a -> 0 < b -> 0 < centred a b ->
  a / centred a b + b / (1 - centred a b) = (sqrt a + sqrt b) ^ 2.
Proof.
  intros a_nonneg bent moving. pose proof (centred_below_one a b bent) as below. revert moving below.
  unfold centred. destruct (Rlt_dec 0 b); [intros moving below | lra].
  destruct (Req_dec a 0) as [none | some].
  - rewrite none, sqrt_0 in moving. unfold Rdiv in moving. lra.
  - pose proof (sqrt_lt_R0 a ltac:(lra)). pose proof (sqrt_lt_R0 b bent).
    rewrite <- (sqrt_sqrt a) at 1 by lra. rewrite <- (sqrt_sqrt b) at 2 by lra. field. lra.
Qed.

Section Tuned.
  Variables (M beta d radius n b : R).
  Hypotheses (M_nonneg : 0 <= M) (n_positive : 0 < n).
  Let e := centred (M / n) b.
  Let p := beta * radius ^ 2 / 2.
  Hypotheses (moving : 0 < e) (below_one : e < 1 \/ beta = 0) (covered : p + beta * d / (2 * n) <= b).

  (** [b] is to cover [p] and what the start adds to it; from the centre it adds nothing. *)
  Lemma tuned : M / (e * n) + beta * (d / (e * n) + radius ^ 2) * (e / (2 * (1 - e))) <= (sqrt (M / n) + sqrt b) ^ 2 - p.
  Proof.
    destruct (Rlt_le_dec 0 b) as [bent | flat].
    - pose proof (centred_below_one (M / n) b bent) as below. fold e in below.
      rewrite <- centred_reaches_the_least; [fold e | now apply Rle_mult_inv_pos | assumption | assumption].
      (* (p e + beta d/(2 n))/(1 - e) <= (b - p (1 - e))/(1 - e) *)
      replace (M / (e * n) + _) with (M / n / e + (p + beta * d / (2 * n)) / (1 - e) - p) by (unfold p; field; lra).
      apply Rplus_le_compat_r, Rplus_le_compat_l. apply Rmult_le_compat_r; [| assumption].
      left. apply Rinv_0_lt_compat. lra.
    - assert (whole : e = 1) by (unfold e, centred; destruct (Rlt_dec 0 b); lra).
      assert (concave : beta = 0) by (destruct below_one; lra).
      pose proof (sqrt_sqrt (M / n) ltac:(now apply Rle_mult_inv_pos)).
      unfold p. rewrite whole, concave, (sqrt_neg_0 b flat), Rmult_1_l. lra.
  Qed.
End Tuned.

(** Both statements, which differ in [b] alone. *)
Lemma tuned_bound {E : InnerProductSpace} (P : Problem E) (run : Run E) (c : E) (radius M b : R) :
  Setting P run -> Ball P c radius -> Initial_gap P run M ->
  Static P -> FrankWolfeStep P run false -> ConstantStep P run true (centred (M / INR (T run)) b) ->
  beta P * radius ^ 2 / 2 + beta P * ‖W run 1 - c‖² / (2 * INR (T run)) <= b ->
  mean (gap run) (T run) <= (sqrt (M / INR (T run)) + sqrt b) ^ 2 - beta P * radius ^ 2 / 2 + mean (eps run) (T run).
Proof.
  intros setting ball initial static step constant covered.
  pose proof (horizon_positive _ (some_iteration _ _ setting)) as some.
  pose proof (exact_step_or_lower P run setting step) as lower.
  eapply Rle_trans; [exact (CircumradiusTelescoped E P run c radius _ setting ball static step constant) |].
  apply Rplus_le_compat_r. destruct constant as (moving & _ & below_one).
  eapply Rle_trans; [| apply tuned with (d := ‖W run 1 - c‖²); try assumption; now apply (initial_gap_nonneg P run)].
  (* h' <= M *)
  apply Rplus_le_compat_r, Rmult_le_compat_r; [| now apply decrease_below_initial_gap].
  left. apply Rinv_0_lt_compat. now apply Rmult_lt_0_compat.
Qed.

Theorem CircumradiusFromAnywhere : statement_from_anywhere.
Proof.
  intros E P run c radius M setting ball initial static step constant.
  apply tuned_bound with c; try assumption.
  (* beta |W_1 - c|^2 <= beta R^2 *)
  pose proof (horizon_positive _ (some_iteration _ _ setting)).
  pose proof (Rmult_le_compat_l _ _ _ (proj1 (upper_smooth _ _ setting)) (proj2 ball _ (proj1 step))) as inside.
  apply Rmult_le_compat_r with (r := / (2 * INR (T run))) in inside; [| left; apply Rinv_0_lt_compat; lra].
  replace (beta P * radius ^ 2 / 2 * (1 + 1 / INR (T run)))
    with (beta P * radius ^ 2 / 2 + beta P * radius ^ 2 * / (2 * INR (T run))) by (field; lra).
  unfold Rdiv at 2. lra.
Qed.

(** [(sqrt a + sqrt p)^2 - p = 2 sqrt(a p) + a] *)
Lemma value_from_centre_is_a_square M beta radius n : 0 <= M -> 0 <= beta -> 0 <= radius -> 0 < n ->
  (sqrt (M / n) + sqrt (beta * radius ^ 2 / 2)) ^ 2 - beta * radius ^ 2 / 2 = value_from_centre M beta radius n.
Proof.
  intros M_nonneg bent radius_nonneg n_positive. unfold value_from_centre.
  assert (a_nonneg : 0 <= M / n) by now apply Rle_mult_inv_pos.
  assert (p_nonneg : 0 <= beta * radius ^ 2 / 2) by (pose proof (pow2_ge_0 radius); nra).
  assert (cross : radius * sqrt (2 * M * beta / n) = 2 * (sqrt (M / n) * sqrt (beta * radius ^ 2 / 2))).
  { rewrite <- sqrt_mult by assumption. rewrite <- (sqrt_pow2 radius) at 1 by assumption. rewrite <- (sqrt_pow2 2) at 2 by lra.
    rewrite <- !sqrt_mult_alt by (apply pow2_ge_0). f_equal. field. lra. }
  rewrite cross. pose proof (sqrt_sqrt _ a_nonneg). pose proof (sqrt_sqrt _ p_nonneg). lra.
Qed.

Theorem CircumradiusFromCentre : statement_from_centre.
Proof.
  intros E P run c radius M setting ball start initial static step constant.
  rewrite <- value_from_centre_is_a_square.
  - apply tuned_bound with c; try assumption. rewrite start. lra.
  - apply (initial_gap_nonneg P run); [| assumption]. now apply exact_step_or_lower.
  - apply (upper_smooth _ _ setting).
  - apply ball.
  - apply horizon_positive, (some_iteration _ _ setting).
Qed.

Theorem CircumradiusBound : statement.
Proof. split; [exact CircumradiusFromCentre | exact CircumradiusFromAnywhere]. Qed.
